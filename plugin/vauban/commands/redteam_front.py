"""A target without vLLM: the front half, with the encoder in it, before a chat route.

Starts in seconds where a whole server takes a minute or more. The middleware, the guard, the
encoder, the tokenizer and the chat template are the real ones; engine, scheduler and sampler are
not there, so times measured on it mean nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from vauban.commands.serve import LOOPBACK
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.middleware import GuardMiddleware
from vauban.standin import load_tokenizer

VERSION = "front-only"


@dataclass(frozen=True, slots=True)
class Answering:
    """A model, and who answers for it.

    `mark`: another name that it is listed by. `directory`: of its tokenizer and chat template.
    `answer`: from a rendered prompt, and the most tokens that may be made of it, which the prompt
    leaves room for in the context. An answer may be longer all the same, and is then cut.
    """

    name: str
    mark: str
    directory: Path
    context_tokens: int
    answer: Callable[[str, int], str]
    max_answer_tokens: int


def front_only_app(model: Answering, policy: Mapping[str, Any]) -> Starlette:
    """The application.

    :param policy: policy sections, over file and environment.
    :raises ConfigError: the policy is wrong.
    """
    tokenizer = load_tokenizer(model.directory)
    sections = {**policy, "encoder": {**policy.get("encoder", {}), "place": "front"}}
    names = [{"id": name, "object": "model"} for name in (model.name, model.mark)]
    listed = {"object": "list", "data": names}
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", partial(_chat, model, tokenizer), methods=["POST"]),
            Route("/v1/models", _fixed(listed)),
            Route("/version", _fixed({"version": VERSION})),
            Route("/health", _fixed({})),
        ]
    )
    app.state.args = SimpleNamespace(additional_config={"vauban": sections}, host=LOOPBACK)
    app.state.engine_client = SimpleNamespace(
        renderer=SimpleNamespace(get_tokenizer=lambda: tokenizer),
        model_config=SimpleNamespace(max_model_len=model.context_tokens),
    )
    app.state.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(policy="fcfs"))
    app.state.openai_serving_models = SimpleNamespace(model_name=lambda: model.name)
    app.state.online_renderer = SimpleNamespace(chat_template=None)
    front = Front()
    front.configure(app.state.args)
    app.add_middleware(GuardMiddleware, front=front)
    return app


def serve_front_only(model: Answering, policy: Mapping[str, Any], port: int) -> None:
    """Run it until it is interrupted."""
    import uvicorn

    logging.getLogger("vauban").setLevel(logging.WARNING)
    app = front_only_app(model, policy)
    uvicorn.run(app, host=LOOPBACK, port=port, log_level="warning", proxy_headers=False)


def _fixed(body: Any) -> Callable[[Request], Any]:
    async def answer(_: Request) -> JSONResponse:
        return JSONResponse(body)

    return answer


async def _chat(model: Answering, tokenizer: Any, request: Request) -> JSONResponse:
    body = json.loads(await request.body())
    messages = [{"role": m["role"], "content": _plain(m["content"])} for m in body["messages"]]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # As the engine sees it: through the tokenizer, special tokens recognised.
    given = tokenizer.encode(prompt, add_special_tokens=False)
    if (room := model.context_tokens - len(given)) < 1:
        return _too_long(len(given), model.context_tokens)
    most = min(int(body.get("max_tokens") or room), room, model.max_answer_tokens)
    answer = await asyncio.to_thread(model.answer, tokenizer.decode(given), most)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    said = tokenizer.decode(ids[:most])
    return JSONResponse(
        {
            "id": "chatcmpl-front-only",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model.name,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": said},
                }
            ],
            "usage": {"prompt_tokens": 0, "completion_tokens": len(ids), "total_tokens": len(ids)},
        }
    )


def _too_long(tokens: int, context: int) -> JSONResponse:
    """As vLLM refuses it."""
    message = f"The prompt has {tokens} tokens; the context of this model holds {context}."
    error = {"message": message, "type": "BadRequestError", "param": "messages", "code": 400}
    return JSONResponse({"error": error}, status_code=400)


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [] if isinstance(part, dict))
