"""Any interleaving of an answer and its verdict releases all of it in order, or nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vauban.hosts.vllm import gate as gate_module
from vauban.hosts.vllm.gate import MAX_HELD_BYTES, Gate
from vauban.types import Principal, PrincipalKind, RateLimit

NOBODY = Principal("n", PrincipalKind.ANONYMOUS)


class Meter:
    """Stands in for the identity: what was charged."""

    def __init__(self) -> None:
        self.charged: list[int] = []

    def charge(self, principal: Principal, tokens: int) -> None:
        self.charged.append(tokens)


class Client:
    """Where released messages go; a slow one gives the loop away before it takes each."""

    def __init__(self, *, slow: bool = False) -> None:
        self.messages: list[dict[str, Any]] = []
        self._slow = slow

    async def send(self, message: Any) -> None:
        if self._slow:
            await asyncio.sleep(0)
        self.messages.append(message)


def answer(chunks: list[bytes], status: int = 200) -> list[dict[str, Any]]:
    start = {"type": "http.response.start", "status": status, "headers": [(b"a", b"b")]}
    bodies = [{"type": "http.response.body", "body": c, "more_body": True} for c in chunks]
    return [start, *bodies, {"type": "http.response.body", "body": b"", "more_body": False}]


def make(client: Client, principal: Principal = NOBODY, meter: Meter | None = None) -> Gate:
    return Gate(client.send, principal, meter or Meter())  # type: ignore[arg-type]


@given(
    chunks=st.lists(st.binary(max_size=6), max_size=8),
    at=st.integers(0, 12),
    good=st.booleans(),
    slow=st.booleans(),
)
def test_all_or_nothing_in_order(chunks: list[bytes], at: int, good: bool, slow: bool) -> None:
    async def run() -> None:
        client = Client(slow=slow)
        gate = make(client)
        messages = answer(chunks)

        async def speak(from_: int) -> None:
            for message in messages[from_:]:
                await gate.send(message)
                await asyncio.sleep(0)

        for message in messages[:at]:
            await gate.send(message)
        assert client.messages == []
        assert gate.complete == (at >= len(messages))
        speaking = asyncio.create_task(speak(at))
        if good:
            await gate.open({"x-vauban-request-id": "r"})
        else:
            gate.drop()
        await speaking
        if good:
            assert [m["type"] for m in client.messages] == [m["type"] for m in messages]
            assert b"".join(m.get("body", b"") for m in client.messages) == b"".join(chunks)
            headers = dict(client.messages[0]["headers"])
            assert headers == {b"a": b"b", b"x-vauban-request-id": b"r"}
        else:
            assert client.messages == []

    asyncio.run(run())


@given(chunks=st.lists(st.binary(max_size=6), max_size=4), status=st.integers(400, 599))
def test_errors_pass_without_a_verdict(chunks: list[bytes], status: int) -> None:
    async def run() -> None:
        client = Client()
        gate = make(client)
        for message in answer(chunks, status):
            await gate.send(message)
        assert gate.is_open
        assert not gate.complete
        assert client.messages == answer(chunks, status)

    asyncio.run(run())


async def test_a_long_answer_waits_instead_of_filling_the_memory() -> None:
    client = Client()
    gate = make(client)
    half = b"x" * (MAX_HELD_BYTES // 2 + 1)
    start, first, second, last = answer([half, half])

    async def speak() -> None:
        for message in (start, first, second, last):
            await gate.send(message)

    speaking = asyncio.create_task(speak())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not speaking.done()
    assert not gate.complete
    await gate.open({})
    await speaking
    assert client.messages == [start, first, second, last]


async def test_a_long_answer_that_is_dropped_waits_no_longer() -> None:
    client = Client()
    gate = make(client)
    speaking = asyncio.gather(
        *(gate.send(m) for m in answer([b"x" * (gate_module.MAX_HELD_BYTES + 1)]))
    )
    await asyncio.sleep(0)
    gate.drop()
    await speaking
    assert client.messages == []


async def test_the_first_body_is_reported_once() -> None:
    calls: list[int] = []
    gate = Gate(Client().send, NOBODY, Meter(), lambda: calls.append(1))  # type: ignore[arg-type]
    start, *bodies = answer([b"a", b"b"])
    await gate.send(start)
    assert calls == []
    assert gate.held_ms() == 0.0
    for body in bodies:
        await gate.send(body)
    assert calls == [1]
    assert gate.held_ms() >= 0.0


async def test_only_what_passed_is_charged() -> None:
    limited = Principal("n", PrincipalKind.KEY, limit=RateLimit(tokens_per_min=10))
    body = b'{"usage": {"total_tokens": 12}}'
    for good, charged in ((True, [12]), (False, [0])):
        meter = Meter()
        gate = make(Client(), limited, meter)
        for message in answer([body]):
            await gate.send(message)
        if good:
            await gate.open({})
        else:
            gate.drop()
        gate.charge(0)
        assert meter.charged == charged
    meter = Meter()
    make(Client(), NOBODY, meter).charge(0)
    assert meter.charged == []
