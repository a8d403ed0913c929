"""What comes with one request: who sent it, and the application's work as a task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vauban.access.identity import client_host
from vauban.hosts.vllm.answers import Answer
from vauban.hosts.vllm.rewrite import Rewriter


def client_address(scope: Scope, proxies: Sequence[str]) -> str | None:
    """The address of whoever asks, or None where it is what the caller says; see `client_host`."""
    client = scope.get("client")
    forwarded = Headers(scope=scope).getlist("x-forwarded-for")
    return client_host(str(client[0]) if client else None, forwarded, proxies)


def start(
    rewriter: Rewriter, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> asyncio.Future[None]:
    """Begin. When an editor ends the answer, the work is cancelled: vLLM then aborts the request
    and frees its KV cache."""
    serving = asyncio.ensure_future(_run(app, scope, receive, send))

    def cancel() -> None:
        serving.cancel()

    rewriter.on_stop = cancel
    return serving


async def finish(serving: asyncio.Future[None], rewriter: Rewriter) -> None:
    """Wait until the application has answered, or an editor has ended the answer."""
    await asyncio.wait([serving])
    if not rewriter.stopped:
        serving.result()


async def stop(serving: asyncio.Future[None]) -> None:
    """Cancel the work and wait until it has let go."""
    if not serving.done():
        serving.cancel()
        # What it raises on the way out is not what this request is answered with.
        await asyncio.gather(serving, return_exceptions=True)


async def send_answer(send: Send, answer: Answer, headers: dict[str, str]) -> None:
    """Send an answer of vauban's own."""
    everything = {
        "content-type": answer.content_type,
        "content-length": str(len(answer.body)),
        **dict(answer.headers),
        **headers,
    }
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in everything.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body})


async def _run(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
