"""Holds an answer back until its verdict is in, then lets it through chunk by chunk."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Send

from vauban.access.identity import Identity
from vauban.hosts.vllm.usage import TokenCounter
from vauban.types import Principal

Message = MutableMapping[str, Any]

MAX_HELD_BYTES = 4 * 1024 * 1024


class Gate:
    """Stands in for `send` of one request.

    While it is shut, messages are kept here: nothing that a model said passes. It must not make
    the server wait, because a streaming answer sends its start, and some protocols their first
    events, before the request has even reached the engine; only over `MAX_HELD_BYTES` it does.
    An error answer of the server (status 400 and above) is taken to hold no model output, which is
    so for vLLM's, and passes at once:
    a request that vLLM refuses never reaches the engine, so no verdict would ever come.

    :param on_body: called when the first part of an answer's body is held.
    """

    def __init__(
        self,
        send: Send,
        principal: Principal,
        identity: Identity,
        on_body: Callable[[], None] | None = None,
    ) -> None:
        self._send = send
        self._principal = principal
        self._identity = identity
        self._on_body = on_body
        self._held: deque[Message] = deque()
        self._held_bytes = 0
        self._held_since: float | None = None
        self._open = asyncio.Event()
        self._complete = False
        self._dropped = False
        limited = principal.limit.tokens_per_min is not None
        self._counter = TokenCounter() if limited else None

    @property
    def is_open(self) -> bool:
        """Messages pass: the verdict was good, or this is an error answer."""
        return self._open.is_set()

    @property
    def complete(self) -> bool:
        """A whole answer is held."""
        return self._complete

    def drop(self) -> None:
        """Let nothing through any more, whatever the application still sends."""
        self._dropped = True
        self._held.clear()
        self._open.set()

    def held_ms(self) -> float:
        """How long the first part of a ready answer has been waiting so far."""
        if self._held_since is None:
            return 0.0
        return (time.perf_counter() - self._held_since) * 1000

    async def open(self, headers: dict[str, str]) -> None:
        """Let the answer through, with these headers added."""
        self._headers = headers
        while self._held:
            await self._pass(self._held.popleft())
        self._open.set()

    async def send(self, message: Message) -> None:
        if self._dropped:
            return
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._headers = {}
            self._open.set()
        if self._open.is_set():
            await self._pass(message)
            return
        self._held.append(message)
        if message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
            if self._held_since is None:
                self._held_since = time.perf_counter()
                if self._on_body is not None:
                    self._on_body()
            self._held_bytes += len(message.get("body", b""))
            if self._held_bytes > MAX_HELD_BYTES:
                await self._open.wait()

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._headers:
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            for name, value in self._headers.items():
                headers[name] = value
            message = {**message, "headers": headers.raw}
        elif self._counter is not None and message["type"] == "http.response.body":
            self._counter.feed(message.get("body", b""))
        await self._send(message)

    def charge(self, prompt_tokens: int) -> None:
        """Count the tokens of this answer against the caller's budget.

        :param prompt_tokens: an estimate, for a stream that does not say.
        """
        if self._counter is not None:
            self._identity.charge(self._principal, self._counter.total(prompt_tokens))
