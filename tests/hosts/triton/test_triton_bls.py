"""Calls of other models: what Triton's Python backend must not be left alone with."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from vauban.hosts.triton.bls import KEEP_RESPONSES_S, Kept, LlmCall


class Responses:
    """As the backend gives them: one at a time, when `go` is set."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.go = threading.Event()

    def __iter__(self) -> Iterator[int]:
        while self.left:
            self.left -= 1
            yield self.left
            self.go.wait(10)


class Request:
    def __init__(self, found: Any) -> None:
        self._found = found

    def exec(self, *, decoupled: bool) -> Any:
        assert decoupled
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


async def test_what_nobody_waits_for_is_read_to_its_end() -> None:
    """Triton would keep it until the process ends."""
    responses, arrived = Responses(5), asyncio.Queue[Any]()
    loop = asyncio.get_running_loop()
    call = LlmCall(
        Request(responses), Kept(), lambda one: loop.call_soon_threadsafe(arrived.put_nowait, one)
    )
    reading = loop.run_in_executor(None, call.read)
    assert await asyncio.wait_for(arrived.get(), 10) == 4
    responses.go.set()  # and here the reader of `arrived` has left
    await asyncio.wait_for(reading, 10)
    assert responses.left == 0


def test_the_end_of_a_call_comes_last_also_where_it_fails() -> None:
    arrived: list[Any] = []
    LlmCall(Request([1, 2]), Kept(), arrived.append).read()
    with pytest.raises(ValueError, match="no such model"):
        LlmCall(Request(ValueError("no such model")), Kept(), arrived.append).read()
    assert arrived == [1, 2, None, None]


@pytest.mark.parametrize("calls", [1, 300])
def test_responses_outlive_their_last_reader_for_a_while(calls: int) -> None:
    now = [0.0]
    kept, there = Kept(lambda: now[0]), []
    for _ in range(calls):
        responses = Responses(0)
        there.append(weakref.ref(responses))
        LlmCall(Request(responses), kept, lambda _: None).read()
        del responses
    assert all(one() for one in there)
    now[0] = KEEP_RESPONSES_S + 0.1
    kept.add(Responses(0))
    assert not any(one() for one in there)
