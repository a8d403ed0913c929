"""Stored responses: the id says whose it is, and nobody else gets further than a 404."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.keyfile import add_key
from vauban.errors import NotFound
from vauban.hosts.vllm.stored import ResponseIds
from vauban.mark import Sealer
from vauban.types import Principal, PrincipalKind, RateLimit

ALICE = Principal("key:alice", PrincipalKind.KEY)
MALLORY = Principal("key:mallory", PrincipalKind.KEY)
IDS = ResponseIds(Sealer(b"0123456789abcdef" * 2))
ASKED = {"model": "standin", "input": "a plain question"}
RESPONSES = "/v1/responses"


def opens(response_id: object, caller: Principal, ids: ResponseIds = IDS) -> bool:
    try:
        ids.check(response_id, caller, param="response_id")
    except NotFound:
        return False
    return True


def test_an_id_opens_for_its_owner_only() -> None:
    made = IDS.new(ALICE)
    assert made.startswith("resp_")
    assert opens(made, ALICE)
    assert not opens(made, MALLORY)
    assert not opens(made, Principal(ALICE.id, PrincipalKind.JWT))
    assert IDS.new(ALICE) != made


def test_after_a_restart_an_id_is_nobodys() -> None:
    assert not opens(IDS.new(ALICE), ALICE, ResponseIds(Sealer(b"another secret.." * 2)))


@given(
    st.one_of(
        st.none(), st.integers(), st.text(), st.lists(st.text()),
        st.from_regex(r"resp_[0-9a-f]{64}", fullmatch=True),
        st.from_regex(r"resp_[0-9a-f]{64}\n", fullmatch=True),
    )
)  # fmt: skip
def test_what_was_not_made_here_opens_for_nobody(made_up: object) -> None:
    assert not opens(made_up, ALICE)


@given(st.integers(5, 68), st.sampled_from("0123456789abcdef"))
def test_an_altered_id_opens_for_nobody(place: int, digit: str) -> None:
    made = IDS.new(ALICE)
    altered = made[:place] + digit + made[place + 1 :]
    assert opens(altered, ALICE) == (altered == made)


# -- through the front ---------------------------------------------------------------------------


@pytest.fixture
def bearers(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """bearers(name, *scopes) -> the header of a new key."""

    def make(name: str, *scopes: str, limit: RateLimit | None = None) -> dict[str, str]:
        key, _ = add_key(
            tmp_path / "keys.json", name, scopes or ("*",), created=datetime.now(UTC),
            expires=None, limit=limit or RateLimit(),
        )  # fmt: skip
        return {"authorization": f"Bearer {key.text}"}

    return make


@pytest.fixture
def callers(bearers: Any) -> dict[str, dict[str, str]]:
    return {"alice": bearers("alice"), "mallory": bearers("mallory"),
            "admin": bearers("admin", "*", "admin")}  # fmt: skip


@pytest.fixture
async def keyed(make_server: Callable[..., Any], callers: Any, tmp_path: Path) -> Any:
    return make_server(identity={"keys_file": str(tmp_path / "keys.json")})


async def create(server: Any, headers: dict[str, str], **fields: Any) -> str:
    assert (await server.post(RESPONSES, {**ASKED, **fields}, headers=headers)).status == 200
    made: str = server.engine.bodies[-1]["request_id"]
    return made


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("HEAD", ""), ("POST", "/cancel")])
async def test_reading_and_cancelling(keyed: Any, callers: Any, method: str, tail: str) -> None:
    made = await create(keyed, callers["alice"])
    keyed.engine.report = False
    before = len(keyed.engine.scopes)
    answers = []
    for who, response_id in [
        ("mallory", made), ("admin", made), ("alice", "resp_" + "0" * 64), ("alice", "x"),
    ]:  # fmt: skip
        path = f"{RESPONSES}/{response_id}{tail}"
        answer = await keyed.post(path, method=method, headers=callers[who])
        assert answer.status == 404
        answers.append({**answer.json["error"], "request_id": ""})
    assert answers.count(answers[0]) == len(answers)
    assert len(keyed.engine.scopes) == before
    path = f"{RESPONSES}/{made}{tail}"
    assert (await keyed.post(path, method=method, headers=callers["alice"])).status == 200


@pytest.mark.parametrize("path", [RESPONSES, "/v1/responses/render", "/v1/chat/completions"])
async def test_continuing(keyed: Any, callers: Any, path: str) -> None:
    made = await create(keyed, callers["alice"])
    before = len(keyed.engine.scopes)
    asked = {**ASKED, "messages": [{"role": "user", "content": "a plain question"}]}
    for previous in (made, "resp_unknown", "", 5, [made], {"id": made}):
        body = {**asked, "previous_response_id": previous}
        answer = await keyed.post(path, body, headers=callers["mallory"])
        assert answer.status == 404
        assert answer.json["error"]["code"] == "not_found"
    assert len(keyed.engine.scopes) == before
    body = {**asked, "previous_response_id": made}
    assert (await keyed.post(path, body, headers=callers["alice"])).status == 200


@pytest.mark.parametrize("who", ["mallory", "admin"])
async def test_nobody_chooses_an_id(keyed: Any, callers: Any, who: str) -> None:
    made = await create(keyed, callers["alice"])
    assert await create(keyed, callers[who], request_id=made) != made


async def test_what_a_path_says_is_not_logged(keyed: Any, callers: Any, tmp_path: Path) -> None:
    for headers in (callers["mallory"], {}):
        await keyed.post(f"{RESPONSES}/my-secret-words", method="GET", headers=headers)
    log = (tmp_path / "audit.log").read_text()
    assert "/v1/responses/{response_id}" in log
    assert "my-secret-words" not in log


async def test_work_that_can_not_be_counted_is_not_done(
    make_server: Callable[..., Any], bearers: Any, tmp_path: Path
) -> None:
    limited = bearers("limited", limit=RateLimit(tokens_per_min=1000))
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    body = {**ASKED, "background": True}
    assert (await server.post(RESPONSES, body, headers=limited)).status == 403
    assert (await server.post(RESPONSES, ASKED, headers=limited)).status == 200


async def test_a_background_response_may_wait_in_the_queue(
    make_server: Callable[..., Any],
) -> None:
    """It is answered at once, so the wait for its verdict is not the encoder's."""
    server = make_server(encoder={"timeout_ms": 30})
    server.engine.report = False
    import asyncio

    asking = asyncio.create_task(server.post(RESPONSES, {**ASKED, "background": True}))
    while not server.engine.bodies:  # noqa: ASYNC110 - the fake engine has no event to wait for
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    server.engine.screen(server.engine.bodies[0])
    assert (await asking).status == 200


async def test_a_stored_response_is_trimmed_each_time_it_is_read(keyed: Any, callers: Any) -> None:
    made = await create(keyed, callers["alice"])
    keyed.engine.report = False
    entry = {"token": "z", "logprob": -7.0, "top_logprobs": []}
    body = {"id": made, "output": [{"content": [{"text": "z", "logprobs": [entry]}]}]}
    keyed.engine.answered = json.dumps(body).encode()
    answer = await keyed.post(f"{RESPONSES}/{made}", method="GET", headers=callers["alice"])
    assert answer.json["output"][0]["content"][0]["logprobs"][0]["logprob"] == -9999.0
