"""What goes over the wire when vauban answers in the model's place.

Statuses and codes stand in `errors.py`; here is the one place that turns a `RequestError` or
a blocking `Verdict` into bytes, in the form of each protocol: OpenAI's errors, Anthropic's errors,
and, where the policy wants a normal answer, each protocol's own refusal, streamed or not. A
client learns the reason code and the request id, never what was matched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vauban.errors import RequestError
from vauban.guard import blocked_sentence
from vauban.protocol.shapes import Shape
from vauban.types import Reason

CONTENT_FILTER = "content_filter"
_JSON = "application/json"
_EVENTS = "text/event-stream; charset=utf-8"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes
    content_type: str = _JSON
    headers: tuple[tuple[str, str], ...] = ()


def error_answer(error: RequestError, shape: Shape, request_id: str) -> Answer:
    """A refused request."""
    headers: tuple[tuple[str, str], ...] = ()
    if (wait_s := getattr(error, "retry_after_s", None)) is not None:
        headers = (("retry-after", str(wait_s)),)
    if error.status == 401:
        headers = (("www-authenticate", "Bearer"),)
    kind = _TYPES.get(error.status, "invalid_request_error")
    return Answer(
        error.status,
        json_body(_error(shape, error.message, kind, error.code, error.param, request_id)),
        headers=headers,
    )


def blocked_answer(shape: Shape, reason: Reason, request_id: str) -> Answer:
    """A request that was blocked, as an error: HTTP 400 with code `content_filter`."""
    body = _error(
        shape, blocked_sentence(reason), "invalid_request_error", CONTENT_FILTER, None, request_id
    )
    body["error"]["reason"] = reason.value
    return Answer(400, json_body(body))


def refusal_answer(
    shape: Shape, text: str, request_id: str, *, model: str, stream: bool
) -> Answer | None:
    """A request that was blocked, as an answer that says no. None where a protocol has no form
    for that (token and pooling routes); the error is sent then."""
    if shape is Shape.CHAT:
        return _chat_refusal(text, request_id, model, stream)
    if shape is Shape.COMPLETION:
        return _completion_refusal(text, request_id, model, stream)
    if shape is Shape.RESPONSES:
        return _responses_refusal(text, request_id, model, stream)
    if shape is Shape.ANTHROPIC:
        return _anthropic_refusal(text, request_id, model, stream)
    return None


def _error(
    shape: Shape, message: str, kind: str, code: str, param: str | None, request_id: str
) -> dict[str, Any]:
    if shape is Shape.ANTHROPIC:
        error = {"type": kind, "message": message, "code": code}
        return {"type": "error", "error": error, "request_id": request_id}
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param,
            "code": code,
            "request_id": request_id,
        }
    }


def _chat_refusal(text: str, request_id: str, model: str, stream: bool) -> Answer:
    head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
    message = {"role": "assistant", "content": text}
    if stream:
        chunk = {
            **head,
            "object": "chat.completion.chunk",
            "choices": [
                {"index": 0, "delta": message, "logprobs": None, "finish_reason": CONTENT_FILTER}
            ],
        }
        return events_answer([(None, chunk)], done=True)
    choice = {
        "index": 0,
        "message": {**message, "refusal": text},
        "logprobs": None,
        "finish_reason": CONTENT_FILTER,
    }
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return Answer(
        200, json_body({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    )


def _completion_refusal(text: str, request_id: str, model: str, stream: bool) -> Answer:
    body = {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": CONTENT_FILTER}],
    }
    if stream:
        return events_answer([(None, body)], done=True)
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return Answer(200, json_body({**body, "usage": usage}))


def _responses_refusal(text: str, request_id: str, model: str, stream: bool) -> Answer:
    part = {"type": "refusal", "refusal": text}
    item = {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "content": [part],
    }
    response = {
        **response_object(request_id, model, [item]),
        "status": "incomplete",
        "incomplete_details": {"reason": CONTENT_FILTER},
    }
    if not stream:
        return Answer(200, json_body(response))
    started = {**response, "status": "in_progress", "output": [], "incomplete_details": None}
    where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": started}),
        ("response.in_progress", {"response": started}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "content": []}}),
        ("response.content_part.added", {**where, "part": {**part, "refusal": ""}}),
        ("response.refusal.delta", {**where, "delta": text}),
        ("response.refusal.done", {**where, "refusal": text}),
        ("response.content_part.done", {**where, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.incomplete", {"response": response}),
    ]
    return events_answer(
        (name, {"type": name, "sequence_number": number, **payload})
        for number, (name, payload) in enumerate(steps)
    )


def response_object(request_id: str, model: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    """A response of the Responses API that cost nothing."""
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "status": "completed",
        "incomplete_details": None,
        "error": None,
        "instructions": None,
        "metadata": None,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
    }


def _anthropic_refusal(text: str, request_id: str, model: str, stream: bool) -> Answer:
    usage = {"input_tokens": 0, "output_tokens": 0}
    message: dict[str, Any] = {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "refusal",
        "stop_sequence": None,
        "usage": usage,
    }
    if not stream:
        return Answer(200, json_body(message))
    end = {"stop_reason": "refusal", "stop_sequence": None}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": {**message, "content": [], "stop_reason": None}}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}}),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": end, "usage": {"output_tokens": 0}}),
        ("message_stop", {}),
    ]
    return events_answer((name, {"type": name, **payload}) for name, payload in steps)


def events_answer(
    steps: Iterable[tuple[str | None, dict[str, Any]]], *, done: bool = False
) -> Answer:
    lines = []
    for name, payload in steps:
        event = f"event: {name}\n" if name else ""
        lines.append(f"{event}data: {json.dumps(payload)}\n\n")
    if done:
        lines.append("data: [DONE]\n\n")
    return Answer(200, "".join(lines).encode(), _EVENTS)


def json_body(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()
