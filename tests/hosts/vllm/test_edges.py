"""What HTTP and JSON let a caller do to the front half itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from vauban.hosts.vllm.middleware import GuardMiddleware

CHAT = "/v1/chat/completions"
GOOD = {"model": "standin", "messages": [{"role": "user", "content": "a plain question"}]}
MakeServer = Callable[..., Any]
REACHED = 418


async def test_a_body_that_does_not_arrive_gives_its_place_up(make_server: MakeServer) -> None:
    server = make_server(limits={"body_timeout_ms": 20, "max_in_flight": 1})
    started = [{"type": "http.request", "body": b"{", "more_body": True}]
    response = await server.post(CHAT, then=started)
    assert response.status == 408
    assert response.json["error"]["code"] == "request_timeout"
    assert server.front.in_flight == 0
    assert (await server.post(CHAT, GOOD)).status == 200


async def test_a_slow_answer_is_not_a_slow_body(make_server: MakeServer) -> None:
    server = make_server(limits={"body_timeout_ms": 20})

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.06)
        await server.engine.say(scope, receive, send)

    server.engine.answer = answer
    assert (await server.post(CHAT, GOOD)).status == 200


@pytest.mark.parametrize("place", ["", "vllm_xargs", "logit_bias", "sampling_params", "metadata"])
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_nesting_of_any_depth_is_answered(server: Any, path: str, place: str) -> None:
    async def ask(depth: int) -> bool:
        deep = '{"a":' * depth + "1" + "}" * depth
        raw = json.dumps(GOOD)[:-1] + f', "{place}": {deep}}}'
        response = await server.post(path, raw=raw.encode())
        if response.status != REACHED:
            assert response.status == 400
            assert response.json["error"]["code"] == "malformed_request"
        return bool(response.status == REACHED)

    server.app = GuardMiddleware(_reached, front=server.front)
    found = [await ask(depth) for depth in (10, 100, 900, *range(940, 1000, 4), 100_000)]
    assert not found[-1]


async def _reached(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": REACHED, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_an_address_that_a_caller_names_is_nobodys(make_server: MakeServer) -> None:
    """uvicorn puts the header's address in place of a loopback peer's."""
    server = make_server(identity={"requests_per_min": 2})
    found = []
    for number in range(4):
        headers = {"x-forwarded-for": f"192.0.2.{number}"}
        found.append((await server.post(CHAT, GOOD, headers=headers)).status)
    assert found == [200, 200, 429, 429]
    assert (await server.post(CHAT, GOOD)).status == 429  # nor is he another without it


async def test_an_address_that_a_trusted_proxy_names(make_server: MakeServer) -> None:
    server = make_server(
        identity={"requests_per_min": 1, "trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}
    )
    for number, said in enumerate(
        ["192.0.2.1", "198.51.100.7, 192.0.2.2", "198.51.100.7, 192.0.2.3, 10.1.1.1"]
    ):
        headers = {"x-forwarded-for": said}
        assert (await server.post(CHAT, GOOD, headers=headers)).status == 200, number
        headers = {"x-forwarded-for": said.replace("198.51.100.7", "203.0.113.9")}
        assert (await server.post(CHAT, GOOD, headers=headers)).status == 429, number


@pytest.mark.parametrize("encodings", [("gzip",), ("identity", "gzip"), ("identity, gzip",), ("",)])
async def test_no_encoding_of_a_body_but_identity(server: Any, encodings: tuple[str, ...]) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(GOOD).encode()}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-encoding", value.encode()) for value in encodings]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "client": None}
    await server.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert server.engine.bodies == []
