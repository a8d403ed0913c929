"""Tokens of an answer, from any cut of its bytes."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.hosts.vllm.usage import TokenCounter

CHAT = json.dumps({"choices": ["x" * 9000], "usage": {"prompt_tokens": 5, "total_tokens": 12}})
STREAM = 'data: {"choices": []}\n\ndata: {"usage": {"total_tokens": 9}}\n\ndata: [DONE]\n\n'
ANTHROPIC = (
    "event: message_start\n"
    'data: {"message": {"usage": {"input_tokens": 7, "output_tokens": 0}}}\n\n'
    'event: message_delta\ndata: {"usage": {"output_tokens": 4}}\n\n'
)


def count(text: str, cuts: list[int]) -> int:
    raw = text.encode()
    counter = TokenCounter()
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        counter.feed(raw[start:end])
    return counter.total()


@given(cuts=st.lists(st.integers(0, 100_000), max_size=8))
@pytest.mark.parametrize(("text", "total"), [(CHAT, 12), (STREAM, 9), (ANTHROPIC, 11)])
def test_any_cut_counts_the_same(text: str, total: int, cuts: list[int]) -> None:
    assert count(text, cuts) == total


def test_a_model_can_not_write_its_own_usage() -> None:
    said = json.dumps({"content": '"total_tokens": 0'})
    assert count('{"usage": {"total_tokens": 12}, "c": ' + said + "}", []) == 12


def test_a_stream_without_usage_counts_events() -> None:
    assert count('data: {"a": 1}\n\n' * 6, []) == 6
    assert count("", []) == 0
    assert count("[]", []) == 0
