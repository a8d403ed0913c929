"""The same prompts through both hosts end in the same verdicts.

What the clients of both see is compared, on texts of the shipped grammars.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from vauban.standin import prose
from vauban.training.grammar import load_grammars

pytestmark = pytest.mark.timeout(1800)

SEED = 20_451
CLIENTS = 4
GIVEN = ("document", "code", "tool_output", "request", "harmless", "gibberish")


def prompts(count: int) -> list[str]:
    """Attacks and harmless texts in equal parts, drawn from all grammars in turn."""
    random = np.random.default_rng(SEED)
    given = dict.fromkeys(GIVEN, _filler)
    grammars = load_grammars(given)
    return [grammars[i % len(grammars)].text(random) for i in range(count)]


def _filler(random: np.random.Generator) -> str:
    return prose(30, int(random.integers(1_000_000)))


@pytest.mark.parametrize(
    "count", [60, pytest.param(500, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_both_hosts_judge_alike(live: Any, triton: Any, count: int) -> None:
    texts = prompts(count)

    def by_vllm(text: str) -> str:
        body = {"model": "standin", "messages": [{"role": "user", "content": text}],
                "max_tokens": 1}  # fmt: skip
        answer = live.post("/v1/chat/completions", body)
        return answer.json()["error"]["reason"] if answer.status_code == 400 else "served"

    def by_triton(text: str) -> str:
        messages = json.dumps([{"role": "user", "content": text}])
        answer = triton.generate(
            "guarded_llm_bls", messages=messages, sampling_parameters='{"max_tokens": 1}'
        )
        if answer.status_code == 200:
            return "served"
        return str(answer.json()["error"]).partition("[")[2].partition("]")[0]

    with ThreadPoolExecutor(CLIENTS) as pool:
        ours = list(pool.map(by_vllm, texts))
        theirs = list(pool.map(by_triton, texts))
    assert set(ours) >= {"served", "prompt_injection"}, Counter(ours)
    assert theirs == ours


def test_both_ways_through_triton_judge_alike(triton: Any) -> None:
    def by(model: str, text: str) -> int:
        return int(triton.ask(model, text, max_tokens=1).status_code)

    texts = prompts(24)
    with ThreadPoolExecutor(CLIENTS) as pool:
        ensemble = list(pool.map(lambda text: by("guarded_llm", text), texts))
        branching = list(pool.map(lambda text: by("guarded_llm_bls", text), texts))
    assert ensemble == branching
    assert set(ensemble) == {200, 400}
