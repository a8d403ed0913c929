"""Takes withheld tool calls out of answers of the Responses API; see `withheld.py`.

A call that waits becomes an `mcp_approval_request` item of the server label `client`, one that is
denied a message. Events are numbered, so from the first call on all that follows is kept back
until the response has ended, and is numbered anew.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from typing import Any, Final

from vauban.hosts.vllm.answers import CONTENT_FILTER
from vauban.hosts.vllm.rewrite import Event
from vauban.hosts.vllm.tool_gate import Outcome, Said, escaped
from vauban.hosts.vllm.withheld import EventWithholder, Judge, is_error
from vauban.protocol.calls import APPROVAL_REQUEST

SERVER_LABEL: Final = "client"
_CALLS: Final = ("function_call", "custom_tool_call")
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")


class ResponsesWithholder(EventWithholder):
    """The Responses API."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._held: list[Event] | None = None

    async def body(self, payload: Any) -> bool:
        items = payload.get("output") if isinstance(payload, dict) else None
        calls = [said_in(i) for i in items if is_call(i)] if isinstance(items, list) else []
        if not calls:
            return False
        outcome = await self._judge(calls)
        if outcome.passes:
            return False
        _replace(payload, calls, outcome)
        return True

    async def event(self, event: Event) -> list[Event]:
        data = event.data if isinstance(event.data, dict) else {}
        kind = data.get("type")
        if self._held is None:
            starts = kind == "response.output_item.added" and is_call(data.get("item"))
            # A response that ends may hold calls that no event has told of.
            if not starts and kind not in _ENDS:
                return [event]
            self._held = []
        if kind in _ENDS:
            held, self._held = self._held, None
            return await self._close(held, event)
        if is_error(data):
            return [event]
        if not data:
            return [event]
        self._held.append(event)
        return [Event(None, raw=b": a tool call is being judged\n\n")]

    async def _close(self, held: list[Event], last: Event) -> list[Event]:
        response = last.data.get("response")
        response = response if isinstance(response, dict) else {}
        places, calls = _streamed(held)
        output = response.get("output")
        ended = [said_in(i) for i in output if is_call(i)] if isinstance(output, list) else []
        # vLLM tells of some calls only at the end, and not of those behind the others.
        calls += (Counter(ended) - Counter(calls)).elements()
        details = response.get("incomplete_details") or {}
        if details.get("reason") == CONTENT_FILTER or last.data["type"] == "response.failed":
            # Stopped: nothing more is given out.
            return _numbered(_others(held, places), held, last)
        if not calls:
            return [*held, last]
        outcome = await self._judge(calls)
        if outcome.passes:
            return [*held, last]
        shown: list[Event] = []
        items = withheld_items(calls, outcome)
        for event in held:
            place = event.data.get("output_index")
            if place not in places:
                shown.append(event)
            elif event.data.get("type") == "response.output_item.added":
                shown += item_events(items[places.index(place)], place)
        _replace(response, calls, outcome, items)
        return _numbered(shown, held, last)


def is_call(item: Any) -> bool:
    """Whether the client is to run it; of an `mcp_call` with an output the server was."""
    if not isinstance(item, dict):
        return False
    return item.get("type") in _CALLS or (
        item.get("type") == "mcp_call" and item.get("output") is None
    )


def said_in(item: dict[str, Any]) -> Said:
    kind, arguments = "function", item.get("arguments")
    if item.get("type") == "custom_tool_call":
        kind, arguments = "custom", json.dumps({"input": item.get("input")})
    return Said(
        str(item.get("call_id") or item.get("id") or ""), str(item.get("name") or ""),
        str(arguments or ""), str(item.get("namespace") or item.get("server_label") or ""), kind,
    )  # fmt: skip


def withheld_items(calls: list[Said], outcome: Outcome) -> list[dict[str, Any]]:
    """What stands in the place of each call."""
    if not outcome.calls or outcome.approval is None:
        return [message_item(outcome.text) for _ in calls]
    return [
        {
            "type": APPROVAL_REQUEST,
            # One approval is for the whole turn; ids of items have to differ.
            "id": f"{outcome.approval['id']}-{number}" if number else outcome.approval["id"],
            "name": escaped(call.tool),
            "arguments": call.arguments,
            "server_label": SERVER_LABEL,
        }
        for number, call in enumerate(outcome.calls)
    ]


def message_item(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{secrets.token_hex(16)}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def item_events(item: dict[str, Any], place: int) -> list[Event]:
    """The events that bring a whole item; their numbers come later."""
    where = {"output_index": place}
    steps: list[dict[str, Any]] = []
    if item["type"] == "message":
        (part,) = item["content"]
        begun = {**item, "status": "in_progress", "content": []}
        at = {**where, "item_id": item["id"], "content_index": 0}
        steps = [
            {"type": "response.output_item.added", **where, "item": begun},
            {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
            {"type": "response.output_text.delta", **at, "delta": part["text"], "logprobs": []},
            {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
            {"type": "response.content_part.done", **at, "part": part},
        ]
    else:
        steps = [{"type": "response.output_item.added", **where, "item": item}]
    steps.append({"type": "response.output_item.done", **where, "item": item})
    return [Event(step, str(step["type"])) for step in steps]


def _replace(
    response: dict[str, Any], calls: list[Said], outcome: Outcome,
    items: list[dict[str, Any]] | None = None,
) -> None:  # fmt: skip
    given = iter(items or withheld_items(calls, outcome))
    response["output"] = [
        next(given) if is_call(item) else item for item in response.get("output") or ()
    ]
    response["approval"] = outcome.approval


def _streamed(held: list[Event]) -> tuple[list[int], list[Said]]:
    """Where calls stand in the output, and the calls, in events that were kept back."""
    items: dict[int, dict[str, Any]] = {}
    for event in held:
        data = event.data
        kind, place, item = data.get("type"), data.get("output_index"), data.get("item")
        if kind in ("response.output_item.added", "response.output_item.done") and is_call(item):
            items[place] = dict(item)
        elif place in items and isinstance(data.get("delta"), str):
            name = "input" if kind == "response.custom_tool_call_input.delta" else "arguments"
            items[place][name] = (items[place].get(name) or "") + data["delta"]
    return [*items], [said_in(item) for item in items.values()]


def _others(held: list[Event], places: list[int]) -> list[Event]:
    return [event for event in held if event.data.get("output_index") not in places]


def _numbered(shown: list[Event], held: list[Event], last: Event) -> list[Event]:
    if not held:
        return [last.changed()]
    first = held[0].data.get("sequence_number")
    if isinstance(first, int):
        for number, event in enumerate([*shown, last], first):
            event.data["sequence_number"] = number
    return [event.changed() for event in (*shown, last)]
