"""Answers a request that comes back with an approval: the stored calls, or what they wait for.

The model is not asked again: another answer of it would be another call. Each protocol's own form,
whole and streamed; the calls come in one piece.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from vauban.access.approval import Call
from vauban.hosts.vllm.answers import (
    CONTENT_FILTER,
    Answer,
    events_answer,
    json_body,
    response_object,
)
from vauban.hosts.vllm.tool_gate import Outcome, Said
from vauban.hosts.vllm.withheld_responses import item_events, withheld_items
from vauban.protocol.shapes import Shape


def settled_answer(
    shape: Shape, outcome: Outcome, request_id: str, *, model: str, stream: bool
) -> Answer:
    """:param shape: of a request that generates; with calls only one of those that have them."""
    render: Callable[[Outcome, str, str, bool], Answer] = {
        Shape.RESPONSES: _responses,
        Shape.ANTHROPIC: _anthropic,
        Shape.COMPLETION: _completion,
        Shape.TOKENS: _completion,
    }.get(shape, _chat)
    return render(outcome, request_id, model, stream)


def _chat(outcome: Outcome, request_id: str, model: str, stream: bool) -> Answer:
    head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
    message: dict[str, Any] = {"role": "assistant", "content": outcome.text or None}
    if outcome.passes:
        message["tool_calls"] = [
            {
                **({"index": number} if stream else {}),
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(outcome.calls)
        ]
    message["approval"] = outcome.approval
    choice = {
        "index": 0,
        "delta" if stream else "message": message,
        "logprobs": None,
        "finish_reason": "tool_calls" if outcome.passes else "stop",
    }
    if stream:
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        return events_answer([(None, chunk)], done=True)
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
    return Answer(200, json_body(body))


def _completion(outcome: Outcome, request_id: str, model: str, stream: bool) -> Answer:
    choice = {
        "index": 0,
        "text": outcome.text,
        "logprobs": None,
        "finish_reason": CONTENT_FILTER,
        "approval": outcome.approval,
    }
    head = {"id": f"cmpl-{request_id}", "object": "text_completion", "created": int(time.time())}
    body = {**head, "model": model, "choices": [choice]}
    if stream:
        return events_answer([(None, body)], done=True)
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return Answer(200, json_body({**body, "usage": usage}))


def _anthropic(outcome: Outcome, request_id: str, model: str, stream: bool) -> Answer:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": outcome.text}]
    if outcome.passes:
        blocks = [
            {"type": "tool_use", "id": c.id, "name": c.name, "input": json.loads(c.arguments)}
            for c in outcome.calls
        ]
    reason = "tool_use" if outcome.passes else "end_turn"
    message: dict[str, Any] = {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
        "approval": outcome.approval,
    }
    if not stream:
        return Answer(200, json_body(message))
    started = {**message, "content": [], "stop_reason": None}
    steps: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": started})]
    for index, block in enumerate(blocks):
        empty: dict[str, Any] = {"text": ""}
        if block["type"] == "text":
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            written = json.dumps(block["input"])
            empty, delta = {"input": {}}, {"type": "input_json_delta", "partial_json": written}
        steps += [
            ("content_block_start", {"index": index, "content_block": {**block, **empty}}),
            ("content_block_delta", {"index": index, "delta": delta}),
            ("content_block_stop", {"index": index}),
        ]
    end = {"stop_reason": reason, "stop_sequence": None}
    told = {"delta": end, "usage": {"output_tokens": 0}, "approval": outcome.approval}
    steps += [("message_delta", told), ("message_stop", {})]
    return events_answer((name, {"type": name, **payload}) for name, payload in steps)


def _responses(outcome: Outcome, request_id: str, model: str, stream: bool) -> Answer:
    if outcome.passes:
        items = [_call_item(call, f"fc_{request_id}{n}") for n, call in enumerate(outcome.calls)]
    elif outcome.calls:
        said = [Said(c.id, c.name, c.arguments, c.namespace, c.kind) for c in outcome.calls]
        items = withheld_items(said, outcome)
    else:
        items = withheld_items([Said("", "", "")], outcome)
    response = {**response_object(request_id, model, items), "approval": outcome.approval}
    if not stream:
        return Answer(200, json_body(response))
    started = {**response, "status": "in_progress", "output": []}
    steps = [("response.created", {"response": started})]
    steps.append(("response.in_progress", {"response": started}))
    for place, item in enumerate(items):
        steps += [(str(event.name), event.data) for event in item_events(item, place)]
    steps.append(("response.completed", {"response": response}))
    return events_answer(
        (name, {**payload, "type": name, "sequence_number": number})
        for number, (name, payload) in enumerate(steps)
    )


def _call_item(call: Call, item_id: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": item_id, "call_id": call.id, "name": call.name}
    if call.namespace:
        item["namespace"] = call.namespace
    if call.kind == "custom":
        return {**item, "type": "custom_tool_call", "input": json.loads(call.arguments)["input"]}
    return {
        **item, "type": "function_call", "arguments": call.arguments, "status": "completed"
    }  # fmt: skip
