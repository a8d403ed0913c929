"""What people run today: a classifier server, and a proxy that asks it before it forwards.

`classifier` has the encoder, the tokenizer and the windows that vauban has, and none of its text
normalisation, identity or audit work, so it does less for a request than the guard does. As a rule
such servers judge one request at a time (PEER_BATCHED unset); with PEER_BATCHED they judge all
that wait in one batch. `proxy` asks first and forwards then, as gateways do before a call; with
PEER_PARALLEL it forwards at once and holds the answer until the verdict is there. PEER_BLOCK_AT is
the score from which it refuses; without it nothing but a score of 1 is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from vauban.detectors.encoder import Encoder
from vauban.policy import EncoderPolicy
from vauban.screening import ScreenQueue
from vauban.types import Reason

REUSED_FOR_S = 3
"""How long an idle connection is used again. Both servers behind close theirs after five seconds,
and a request sent on one of those would be lost."""


def classifier() -> FastAPI:
    app = FastAPI()
    policy = EncoderPolicy()
    encoder = Encoder.load(policy, "cpu")
    queue = ScreenQueue(encoder.encode, policy.queue_tokens)
    one_at_a_time = asyncio.Lock()
    batched = bool(os.environ.get("PEER_BATCHED"))

    async def score(text: str) -> float:
        windows = encoder.tokenizer([text])
        if not batched:
            async with one_at_a_time:
                (encoded,) = await asyncio.to_thread(encoder.encode, [windows])
                return encoded.score
        (future,) = queue.submit([windows])
        outcome = (await asyncio.wrap_future(future)).outcome
        return 1.0 if isinstance(outcome, Reason) else outcome.score

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        return JSONResponse({"score": await score((await request.json())["text"])})

    return app


def _text(content: str | list[dict[str, Any]]) -> str:
    """Of a chat message: a text, or parts that have one."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def proxy() -> FastAPI:
    upstream = os.environ["PEER_UPSTREAM"]
    classify_at = os.environ["PEER_CLASSIFIER"] + "/classify"
    in_parallel = bool(os.environ.get("PEER_PARALLEL"))
    block_at = float(os.environ.get("PEER_BLOCK_AT", "1"))
    sessions: list[aiohttp.ClientSession] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=REUSED_FOR_S)
        async with aiohttp.ClientSession(connector=connector) as session:
            sessions.append(session)
            yield

    app = FastAPI(lifespan=lifespan)

    async def blocked(body: dict[str, Any]) -> bool:
        text = "\n".join(_text(message["content"]) for message in body["messages"])
        async with sessions[0].post(classify_at, json={"text": text}) as answer:
            answer.raise_for_status()
            return bool((await answer.json())["score"] >= block_at)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        verdict = asyncio.ensure_future(blocked(body))
        if not in_parallel and await verdict:
            return JSONResponse({"error": {"code": "content_filter"}}, status_code=400)
        answer = await sessions[0].post(f"{upstream}/v1/chat/completions", json=body)
        if await verdict:
            answer.close()
            return JSONResponse({"error": {"code": "content_filter"}}, status_code=400)

        async def passed() -> AsyncIterator[bytes]:
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        return StreamingResponse(
            passed(), status_code=answer.status, media_type=answer.content_type
        )

    return app
