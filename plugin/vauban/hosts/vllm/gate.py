"""Holds an answer back until its verdict is in, then lets it through chunk by chunk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Send

from vauban.access.identity import Identity
from vauban.hosts.vllm.usage import TokenCounter
from vauban.types import Principal

Message = MutableMapping[str, Any]


class Gate:
    """Stands in for `send` of one request.

    Nothing that a model said passes while it is shut. An error answer of the server (status 400
    and above) holds no model output and passes at once: a request that vLLM refuses never reaches
    the engine, so no verdict would ever come.

    :param on_first: called when the answer begins while the gate is shut.
    """

    def __init__(
        self,
        send: Send,
        principal: Principal,
        identity: Identity,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self._send = send
        self._principal = principal
        self._identity = identity
        self._on_first = on_first
        self._opened = asyncio.Event()
        self._is_open = False
        self._held_since: float | None = None
        self._headers: dict[str, str] = {}
        limited = principal.limit.tokens_per_min is not None
        self._counter = TokenCounter() if limited else None

    def open(self, headers: dict[str, str]) -> None:
        """Let the answer through, with these headers added."""
        self._headers = headers
        self._is_open = True
        self._opened.set()

    def held_ms(self) -> float:
        """How long a ready answer has been waiting so far."""
        if self._held_since is None:
            return 0.0
        return (time.perf_counter() - self._held_since) * 1000

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        if self._counter is not None and message["type"] == "http.response.body":
            self._counter.feed(message.get("body", b""))
        await self._send(message)

    async def _start(self, message: Message) -> None:
        if message["status"] >= 400:
            await self._send(message)
            return
        if not self._is_open:
            self._held_since = time.perf_counter()
            if self._on_first is not None:
                self._on_first()
            await self._opened.wait()
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        for name, value in self._headers.items():
            headers[name] = value
        await self._send({**message, "headers": headers.raw})

    def charge(self) -> None:
        """Count the tokens of this answer against the caller's budget."""
        if self._counter is not None:
            self._identity.charge(self._principal, self._counter.total())
