"""Takes withheld tool calls out of answers of chat completions and of Anthropic's Messages API.

Text goes out as it comes. The calls of a turn are kept back until the turn has ended and all of
them are judged; then they follow as they were said, or a text takes their place that tells the
user what happened, and an object `approval` that tells a program.

Covers: calls that vLLM has parsed, of each choice by itself, and the log-probabilities and token
ids that spell them. Does not cover: what the model says of a call in its text or reasoning.
"""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from vauban.hosts.vllm.answers import CONTENT_FILTER
from vauban.hosts.vllm.output import joined
from vauban.hosts.vllm.rewrite import Event
from vauban.hosts.vllm.tool_gate import Outcome, Said, ToolGate, Turn

_ATTACHED: Final = ("logprobs", "token_ids")
_LEGACY: Final = "function_call"
# An answer that was cut stays recognisable as one.
_CUT: Final = ("length", CONTENT_FILTER, "max_tokens", "refusal")


class Judge(Protocol):
    async def __call__(self, calls: list[Said]) -> Outcome: ...


def judge_of(gate: ToolGate, turn: Turn) -> Judge:
    async def judge(calls: list[Said]) -> Outcome:
        return await gate.judge(turn, calls)

    return judge


def is_error(data: Any) -> bool:
    return isinstance(data, dict) and (
        data.get("error") is not None or data.get("type") in ("error", "response.failed")
    )


class ChoicesWithholder:
    """Chat completions: answers in `choices`."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._held: dict[int, _HeldChoice] = {}

    async def body(self, payload: Any) -> bool:
        choices = payload.get("choices") if isinstance(payload, dict) else None
        changed = False
        for choice in choices if isinstance(choices, list) else ():
            message = choice.get("message")
            calls = _calls_in(message) if isinstance(message, dict) else []
            if not calls:
                continue
            outcome = await self._judge(calls)
            if not outcome.passes:
                withhold(choice, message, outcome)
                changed = True
        return changed

    async def events(self, events: list[Event]) -> list[Event]:
        for event in events:
            choices = event.data.get("choices") if isinstance(event.data, dict) else None
            for part in choices if isinstance(choices, list) else ():
                if isinstance(part.get("delta"), dict):
                    await self._part(event, part, part["delta"])
        return events

    async def _part(self, event: Event, part: dict[str, Any], delta: dict[str, Any]) -> None:
        index = part.get("index", 0)
        if delta.get("tool_calls") or delta.get(_LEGACY):
            self._held.setdefault(index, _HeldChoice()).take(part, delta)
            event.changed()
        finish = part.get("finish_reason")
        if finish is None or index not in self._held:
            return
        held = self._held.pop(index)
        event.changed()
        if finish == CONTENT_FILTER:  # the answer was stopped: nothing more of it is given out
            return
        outcome = await self._judge(held.calls())
        if outcome.passes:
            held.give_back(part, delta)
        else:
            withhold(part, delta, outcome)


class _HeldChoice:
    """The calls of one choice of a stream, put together."""

    def __init__(self) -> None:
        self._calls: dict[Any, dict[str, Any]] = {}
        self._attached: dict[str, Any] = {}

    def take(self, part: dict[str, Any], delta: dict[str, Any]) -> None:
        pieces = [(call.get("index", 0), call) for call in delta.pop("tool_calls", None) or ()]
        if legacy := delta.pop(_LEGACY, None):
            pieces.append((_LEGACY, {"function": legacy}))
        for key, piece in pieces:
            known = self._calls.setdefault(key, {"function": {"name": "", "arguments": ""}})
            said = piece.get("function") or {}
            for name in ("name", "arguments"):
                known["function"][name] += said.get(name) or ""
            known.update({n: v for n, v in piece.items() if n != "function" and v is not None})
        for name in _ATTACHED:
            if part.get(name) is not None:
                self._attached[name] = joined(self._attached.get(name), part[name])
                part[name] = None

    def calls(self) -> list[Said]:
        return [_said(call) for call in self._calls.values()]

    def give_back(self, part: dict[str, Any], delta: dict[str, Any]) -> None:
        calls = {key: call for key, call in self._calls.items() if key != _LEGACY}
        if calls:
            delta["tool_calls"] = [{"index": key, **call} for key, call in calls.items()]
        if _LEGACY in self._calls:
            delta[_LEGACY] = self._calls[_LEGACY]["function"]
        for name, value in self._attached.items():
            part[name] = joined(value, part.get(name))


def withhold(choice: dict[str, Any], message: dict[str, Any], outcome: Outcome) -> None:
    """Put what a client is told in the place of the calls of a message or a delta."""
    message.pop("tool_calls", None)
    message.pop(_LEGACY, None)
    for name in _ATTACHED:
        if choice.get(name) is not None:
            choice[name] = None
    said = message.get("content") or ""
    message["content"] = f"{said}\n\n{outcome.text}" if said else outcome.text
    message["approval"] = outcome.approval
    if choice.get("finish_reason") not in _CUT:
        choice["finish_reason"] = "stop"


def _calls_in(message: dict[str, Any]) -> list[Said]:
    calls = [_said(call) for call in message.get("tool_calls") or ()]
    legacy = message.get(_LEGACY)
    return [*calls, _said({"function": legacy})] if legacy else calls


def _said(call: dict[str, Any]) -> Said:
    function = call.get("function") or call.get("custom") or {}
    arguments = function.get("arguments")
    if arguments is None:  # a custom tool takes any text
        arguments = json.dumps({"input": function.get("input")})
    return Said(str(call.get("id") or ""), str(function.get("name") or ""), str(arguments))


class EventWithholder:
    """Keeps back, event by event; for protocols whose events can't be judged in place."""

    async def events(self, events: list[Event]) -> list[Event]:
        """See `rewrite.LastEditor`."""
        return [given for event in events for given in await self.event(event)]

    async def event(self, event: Event) -> list[Event]:
        """What goes out in the place of one event."""
        raise NotImplementedError


class AnthropicWithholder(EventWithholder):
    """Anthropic's Messages API.

    Blocks of a stream are numbered and come one after the other, so from the first call on all
    that follows is kept back until the turn has ended.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._held: list[Event] | None = None

    async def body(self, payload: Any) -> bool:
        blocks = payload.get("content") if isinstance(payload, dict) else None
        blocks = blocks if isinstance(blocks, list) else []
        calls = [_used(block) for block in blocks if _is_call(block)]
        if not calls:
            return False
        outcome = await self._judge(calls)
        if outcome.passes:
            return False
        rest = [block for block in blocks if not _is_call(block)]
        payload["content"] = [*rest, {"type": "text", "text": outcome.text}]
        _end(payload, payload, outcome)
        return True

    async def event(self, event: Event) -> list[Event]:
        data = event.data if isinstance(event.data, dict) else {}
        kind = data.get("type")
        if self._held is None:
            if kind != "content_block_start" or not _is_call(data.get("content_block")):
                return [event]
            self._held = []
        if kind == "message_delta":
            held, self._held = self._held, None
            return await self._close(held, event)
        if is_error(data) or kind in ("ping", "message_stop"):
            return [event]
        self._held.append(event)
        return [_ping()]

    async def _close(self, held: list[Event], last: Event) -> list[Event]:
        delta = last.data.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        calls = _streamed(held)
        refused = delta.get("stop_reason") == "refusal"  # stopped: nothing more is given out
        outcome = None if refused or not calls else await self._judge(calls)
        if outcome is not None and outcome.passes:
            return [*held, last]
        shown = _without_calls(held)
        if outcome is not None:
            number = len({event.data["index"] for event in shown}) + held[0].data["index"]
            shown += text_block(number, outcome.text)
            _end(delta, last.data, outcome)
        return [*shown, last.changed()]


def _end(reason: dict[str, Any], holder: dict[str, Any], outcome: Outcome) -> None:
    if reason.get("stop_reason") not in _CUT:
        reason["stop_reason"] = "end_turn"
    holder["approval"] = outcome.approval


def _is_call(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_use"


def _used(block: dict[str, Any]) -> Said:
    arguments = json.dumps(block.get("input") or {})
    return Said(str(block.get("id") or ""), str(block.get("name") or ""), arguments)


def _streamed(held: list[Event]) -> list[Said]:
    """The calls in events that were kept back."""
    blocks: dict[Any, dict[str, Any]] = {}
    pieces: dict[Any, str] = {}
    for event in held:
        index, kind = event.data.get("index"), event.data.get("type")
        if kind == "content_block_start" and _is_call(event.data.get("content_block")):
            blocks[index] = event.data["content_block"]
        elif kind == "content_block_delta" and index in blocks:
            delta = event.data.get("delta") or {}
            pieces[index] = pieces.get(index, "") + (delta.get("partial_json") or "")
    return [
        Said(used.id, used.name, pieces.get(index) or used.arguments)
        for index, used in ((index, _used(block)) for index, block in blocks.items())
    ]


def _without_calls(held: list[Event]) -> list[Event]:
    """The events of other blocks, numbered anew."""
    first = held[0].data["index"] if held else 0
    numbers: dict[Any, int] = {}
    calls: set[Any] = set()
    shown = []
    for event in held:
        index = event.data.get("index")
        if _is_call(event.data.get("content_block")):
            calls.add(index)
        if index in calls:
            continue
        event.data["index"] = numbers.setdefault(index, first + len(numbers))
        shown.append(event.changed())
    return shown


def text_block(index: int, text: str) -> list[Event]:
    steps: list[dict[str, Any]] = [
        {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop"},
    ]
    return [Event({**step, "index": index}, str(step["type"])) for step in steps]


def _ping() -> Event:
    """Something to say while a call is kept back, for what gives up on silent connections."""
    return Event({"type": "ping"}, "ping")
