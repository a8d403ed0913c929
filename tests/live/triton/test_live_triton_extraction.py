"""A thief with one key and a person with another, and the model that knows them loaded anew."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from test_live_extraction import person, thief
from test_live_triton import BLS, BOTH, ENSEMBLE, PLAIN

from vauban.access.watch import CHECK_EVERY_S
from vauban.policy import Policy

pytestmark = pytest.mark.timeout(900)

QUERIES = 300
FRESH_S = Policy().state.refresh_ms / 1000
BIASED = '{"max_tokens": 1, "logit_bias": {"5": 1.0}}'


def error_of(answer: Any) -> str:
    """The reason code of a refusal; empty for an answer."""
    if answer.status_code == 200:
        return ""
    return str(answer.json()["error"]).partition("[")[2].partition("]")[0]


@pytest.fixture(scope="module")
def keys(triton: Any) -> dict[str, str]:
    made = {name: triton.person(name) for name in ("thief", "person")}
    time.sleep(CHECK_EVERY_S + 0.1)  # by then the server has read the file again
    return made


def ask(triton: Any, key: str, text: str, name: str = BLS, sampling: str = "") -> str:
    sampling = sampling or '{"max_tokens": 1}'
    return error_of(triton.generate(name, key, text_input=text, sampling_parameters=sampling))


def worked(triton: Any) -> int:
    """Requests that the LLM has had."""
    client = grpcclient.InferenceServerClient(triton.grpc_address)
    found = client.get_inference_statistics("llm", as_json=True)["model_stats"][0]
    return int(found.get("inference_count", 0))


def test_a_thief_is_degraded_then_banned_and_a_person_notices_nothing(
    triton: Any, keys: dict[str, str]
) -> None:
    stolen, asked = thief(random.Random(1)), person(random.Random(2))  # noqa: S311
    assert not ask(triton, keys["thief"], "Hello", sampling=BIASED)
    refused: list[str] = []
    biased: set[str] = set()
    for number in range(QUERIES):
        # Every other request goes to the ensemble: they share what is known of a caller.
        name = BLS if number % 2 else ENSEMBLE
        refused.append(ask(triton, keys["thief"], next(stolen), name))
        assert not ask(triton, keys["person"], next(asked), name)
        if refused[-1]:
            break
        if number % 4 == 3:
            biased.add(ask(triton, keys["thief"], next(stolen), sampling=BIASED))
    assert refused[-1] == "banned", refused[-1]
    assert "malformed_request" in biased  # what a degraded caller is told of a bias
    log = triton.server.log.read_text(errors="replace")
    for step in ('"to": "flagged"', '"to": "degraded"', '"to": "banned"'):
        assert step in log
    assert triton.metric("vauban_standing_transitions_total", to="banned") == 1
    assert triton.metric("vauban_extraction_score_count") > len(refused)


@BOTH
def test_who_is_banned_is_no_work_for_the_llm(triton: Any, keys: dict[str, str], name: str) -> None:
    before = worked(triton)
    assert ask(triton, keys["thief"], PLAIN, name) == "banned"
    assert worked(triton) == before
    assert not ask(triton, keys["person"], PLAIN, name)


def test_a_ban_outlives_the_model_that_set_it(triton: Any, keys: dict[str, str]) -> None:
    """While it is gone nobody is served: nobody knows who may be."""
    assert triton.admin("guard_extraction/unload").status_code == 200
    time.sleep(FRESH_S + 0.1)  # by then no standing that was told before counts any more
    try:
        for name in (BLS, ENSEMBLE):
            for key in keys.values():
                assert ask(triton, key, PLAIN, name) == "state_unavailable"
    finally:
        assert triton.admin("guard_extraction/load").status_code == 200
    assert ask(triton, keys["thief"], PLAIN) == "banned"
    assert not ask(triton, keys["person"], PLAIN)
    assert "levels of users are read from the store" in triton.server.log.read_text()
