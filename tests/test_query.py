"""The query of the guard's own routes."""

from __future__ import annotations

import pytest

from vauban.errors import MalformedRequest
from vauban.hosts.vllm.query import DEFAULT_LISTED, read_limit, read_query


@pytest.mark.parametrize(
    "text",
    ["0", "501", "-1", "1.0", "x", "\N{SUPERSCRIPT TWO}", "000000001" + "9" * 30, "9" * 5_000],
)
def test_a_limit_that_is_none(text: str) -> None:
    with pytest.raises(MalformedRequest):
        read_limit(text, 500)


def test_limits_that_are_taken() -> None:
    assert [read_limit(text, 500) for text in ("", "1", "500")] == [DEFAULT_LISTED, 1, 500]


@pytest.mark.parametrize(
    "query", [b"other=1", b"a=1&a=2&a=3", b"a=1&a=2", b"a=" + b"x" * 201, b"\xff=1"]
)
def test_a_query_that_is_not_taken(query: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_query(query, "a", "b")


def test_what_is_not_asked_for_is_empty() -> None:
    assert read_query(b"a=1", "a", "b") == {"a": "1", "b": ""}
