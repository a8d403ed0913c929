"""A relay on loopback between a tool and the target, which keeps the books.

The tools retry for ever on a dead or throttled target and drop the answer to a blocked request;
so every request of theirs passes here. The relay bounds time and retries, remembers by the digest
of the prompt what became of each request, and says when the target is past hope. It holds the
target's key, so a tool never sees that.

Covers: chat completions and whatever else the tools POST or GET, unstreamed. Does not cover:
streams, which are read to their end before they are passed on.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vauban.errors import RedTeamError
from vauban.redteam.outcome import Outcome, classify, digest_of_messages

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_REMEMBERED = 200_000
ATTEMPT_HEADER = "x-redteam-attempt"
_START_S = 30
_KEPT = frozenset({"content-type", "retry-after"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long the relay is patient. `hopeless_after`: requests in a row without an answer."""

    request_s: float = 60.0
    retries: int = 3
    max_wait_s: float = 5.0
    hopeless_after: int = 8


@dataclass
class Books:
    """What became of the requests. Written in the relay's thread, read from any."""

    by_prompt: dict[str, deque[Outcome]] = field(default_factory=lambda: defaultdict(deque))
    counts: Counter[str] = field(default_factory=Counter)
    policy_digest: str = "unknown"
    hopeless: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    _in_a_row: int = 0

    def write(self, prompt: str, outcome: Outcome, bounds: Bounds) -> None:
        with self.lock:
            self.counts["requests"] += 1
            self.counts[outcome.kind] += 1
            if self.counts["requests"] <= MAX_REMEMBERED:
                self.by_prompt[prompt].append(outcome)
            self._in_a_row = self._in_a_row + 1 if outcome.unavailable else 0
            if self._in_a_row >= bounds.hopeless_after and self.hopeless is None:
                self.hopeless = outcome.detail

    def take(self, prompt: str) -> Outcome | None:
        """The oldest outcome for this prompt that was not taken yet."""
        with self.lock:
            waiting = self.by_prompt.get(prompt)
            return waiting.popleft() if waiting else None

    def total(self) -> int:
        with self.lock:
            return self.counts["requests"]


class Relay:
    """The relay; a context manager.

    :param target: the endpoint's base, with or without `/v1`.
    :raises RedTeamError: the relay could not start.
    """

    def __init__(self, target: str, key: str | None = None, bounds: Bounds | None = None) -> None:
        self.books = Books()
        self._target = target.rstrip("/").removesuffix("/v1")
        self._key = key
        self._bounds = bounds or Bounds()
        self._server: Any = None
        self._client: httpx.AsyncClient
        self._thread: threading.Thread | None = None
        self.url = ""

    def __enter__(self) -> Relay:
        import uvicorn

        route = Route("/{path:path}", self._handle, methods=["GET", "POST"])
        app = Starlette(routes=[route], lifespan=self._with_client)
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="critical", lifespan="on",
            access_log=False, ws="none",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="relay", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RedTeamError("the relay on loopback could not start")
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        if self._thread is not None:
            self._thread.join(10)

    async def _handle(self, request: Request) -> Response:
        try:
            body = await _read(request)
        except ClientDisconnect:
            return Response(status_code=400)
        path = request.path_params["path"]
        if request.method == "GET":
            return await self._pass_get(path)
        # A tool that numbers its attempts is believed; else the prompt tells them apart.
        number = request.headers.get(ATTEMPT_HEADER)
        prompt = f"attempt:{number}" if number else digest_of_messages(_messages(body))
        outcome, answer = await self._ask(path, body, request.headers.get("content-type"))
        self.books.write(prompt, outcome, self._bounds)
        return answer

    async def _pass_get(self, path: str) -> Response:
        try:
            async with asyncio.timeout(self._bounds.request_s):
                answer = await self._send("GET", path, self._headers())
        except (TimeoutError, httpx.HTTPError):
            return _no_answer("dead_target")
        return _passed(answer)

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> httpx.Response:
        async with self._client.stream(
            method, f"{self._target}/{path}", content=body, headers=headers
        ) as answer:
            data = bytearray()
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) > MAX_ANSWER_BYTES:
                    raise httpx.DecodingError(f"over {MAX_ANSWER_BYTES} bytes")
            # It is decoded; what the headers say of its length and encoding is over.
            kept = {k: v for k, v in answer.headers.items() if k in _KEPT or k.startswith("x-")}
            return httpx.Response(answer.status_code, headers=kept, content=bytes(data))

    async def _ask(
        self, path: str, body: bytes, content_type: str | None
    ) -> tuple[Outcome, Response]:
        if self.books.hopeless is not None:
            return Outcome.error(self.books.hopeless), _no_answer(self.books.hopeless)
        headers = self._headers() | {"content-type": content_type or "application/json"}
        kind = "server_error"
        for attempt in range(self._bounds.retries + 1):
            try:
                async with asyncio.timeout(self._bounds.request_s):
                    answer = await self._send("POST", path, headers, body)
            except (TimeoutError, httpx.TimeoutException):
                return Outcome.error("timeout"), _no_answer("timeout")
            except httpx.HTTPError:
                kind, wait_s = "dead_target", 0.2
            else:
                if answer.status_code != 429 and answer.status_code < 500:
                    return self._told(answer)
                kind = "rate_limited" if answer.status_code == 429 else "server_error"
                wait_s = _retry_after_s(answer.headers)
            if attempt < self._bounds.retries:
                await asyncio.sleep(min(wait_s, self._bounds.max_wait_s))
        return Outcome.error(kind), _no_answer(kind)

    def _told(self, answer: httpx.Response) -> tuple[Outcome, Response]:
        outcome = classify(answer.status_code, _json(answer.content), answer.headers)
        with self.books.lock:
            digest = answer.headers.get("x-vauban-policy", self.books.policy_digest)
            self.books.policy_digest = digest[:64]
        return outcome, _passed(answer)

    @asynccontextmanager
    async def _with_client(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=self._bounds.request_s, trust_env=False) as client:
            self._client = client
            yield

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}


async def _read(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            chunks.append(chunk)
    return b"".join(chunks)


def _messages(body: bytes) -> Sequence[Mapping[str, Any]]:
    data = _json(body)
    found = data.get("messages") if isinstance(data, dict) else None
    return [m for m in found if isinstance(m, dict)] if isinstance(found, list) else []


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _retry_after_s(headers: Mapping[str, str]) -> float:
    value = headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 1.0


def _passed(answer: httpx.Response) -> Response:
    kept = {"content-type": answer.headers.get("content-type", "application/json")}
    return Response(answer.content, answer.status_code, headers=kept)


def _no_answer(kind: str) -> Response:
    """A status that the tools take as final: they would repeat a 429 or a 5xx for ever."""
    error = {"message": f"no answer from the target: {kind}", "type": "relay", "code": kind}
    return JSONResponse({"error": error}, status_code=400)
