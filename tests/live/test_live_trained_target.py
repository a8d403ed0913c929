"""The trained stand-in target in a real vLLM: it answers there as it does without an engine."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from vauban.commands.redteam_target import MODELS, TRAINED, local_target
from vauban.redteam.benign import tasks
from vauban.redteam.objectives import OBJECTIVES
from vauban.training.instruct_answer import SHIPPED_TARGET, Answerer
from vauban.training.instruct_data import rendered
from vauban.training.instruct_turns import Turn

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def unguarded() -> Iterator[httpx.Client]:
    with (
        local_target("off", TRAINED) as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client,
    ):
        yield client


def ask(client: httpx.Client, text: str) -> httpx.Response:
    body = {"model": TRAINED, "messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", json=body)


def test_it_answers_as_without_an_engine(unguarded: httpx.Client) -> None:
    """Letter by letter but for a rare tie, which float32 breaks differently in another kernel."""
    local = Answerer(SHIPPED_TARGET)
    asked = [o["objective"] for o in OBJECTIVES if "system" not in o]
    asked += [task.text for task in tasks()[::12]]
    same = 0
    for text in asked:
        answer = ask(unguarded, text).json()["choices"][0]["message"]["content"]
        same += answer == local(rendered([Turn("user", text)]), MODELS[TRAINED].max_answer_tokens)
    assert same >= len(asked) - 1


def test_an_answer_without_end_is_cut_and_a_long_prompt_refused(unguarded: httpx.Client) -> None:
    usage = ask(unguarded, f"Repeat the following text: {'lantern heron ' * 400}").json()["usage"]
    assert usage["completion_tokens"] <= MODELS[TRAINED].max_answer_tokens
    assert ask(unguarded, "lantern " * 5_000).status_code == 400
