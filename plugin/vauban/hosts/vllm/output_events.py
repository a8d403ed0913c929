"""Sanitises answers of the Responses API and of Anthropic's Messages API; see `output.py`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from vauban.hosts.vllm.answers import CONTENT_FILTER
from vauban.hosts.vllm.output import Channels, ChoicesEditor
from vauban.hosts.vllm.rewrite import Event
from vauban.protocol.shapes import Shape
from vauban.text.sanitize import Sanitizer

_ITEM_TEXTS: Final = ("text", "refusal", "arguments", "code", "input")
_ITEM_PARTS: Final = ("content", "summary", "outputs", "output", "item", "part", "response")
_BLOCK_TEXTS: Final = {"text": "text", "thinking": "thinking", "partial_json": "partial_json"}


def output_editor(rules: Sanitizer, shape: Shape) -> OutputEditor:
    """The editor for answers of a protocol."""
    if shape is Shape.RESPONSES:
        return ResponsesEditor(rules)
    return AnthropicEditor(rules) if shape is Shape.ANTHROPIC else ChoicesEditor(rules)


class ResponsesEditor:
    """The Responses API.

    Its events are numbered, so none is added and none is left out: the last piece of each text is
    kept until the event after it, and takes what was held back.
    """

    def __init__(self, rules: Sanitizer) -> None:
        self.stopped = False
        self._channels = Channels(rules)
        self._kept: Event | None = None
        self._key: tuple[Any, ...] = ()
        self._response: dict[str, Any] = {}

    @property
    def findings(self) -> Counter[tuple[str, str]]:
        self._channels.close_all()
        return self._channels.findings

    def body(self, payload: Any) -> bool:
        if not isinstance(payload, dict):
            return False
        items = payload.get("output")
        items = items if isinstance(items, list) else []
        changed = False
        for number, item in enumerate(items):
            one, stopped = self._clean(item, counts=True)
            changed = changed or one
            if stopped:
                payload["output"] = items[: number + 1]
                payload["status"] = "incomplete"
                payload["incomplete_details"] = {"reason": CONTENT_FILTER}
                return True
        return changed

    def event(self, event: Event) -> Iterable[Event]:
        data = event.data
        if not isinstance(data, dict) or not isinstance(data.get("type"), str):
            return (event,)
        kind = data["type"]
        if isinstance(data.get("response"), dict):
            self._response = data["response"]
        if kind.endswith(".delta") and isinstance(data.get("delta"), str):
            return self._piece(event, kind)
        released = self._flush()
        if self.stopped:
            return self._stop(released, data)
        self._clean(data, counts=False)
        return (*released, event.changed())

    def end(self) -> Iterable[Event]:
        return self._flush()

    def _piece(self, event: Event, kind: str) -> Iterable[Event]:
        data = event.data
        places = ("item_id", "output_index", "content_index", "summary_index")
        key = (kind, *(data.get(name) for name in places))
        released = self._flush() if self._kept is not None and key != self._key else []
        if self.stopped:
            return self._stop(released, data)
        if self._kept is not None:
            released.append(self._kept)
        is_json = "arguments" in kind
        data["delta"], stream = self._channels.feed(key, data["delta"], json=is_json)
        if data.get("logprobs"):
            data["logprobs"] = []  # they spell what is still held back
        self._kept, self._key = event.changed(), key
        if stream.stopped:
            self.stopped = True
            kept, self._kept = self._kept, None
            return self._stop([*released, kept], data)
        return released

    def _flush(self) -> list[Event]:
        if self._kept is None:
            return []
        kept, self._kept = self._kept, None
        rest, stopped = self._channels.close(self._key)
        kept.data["delta"] += rest
        self.stopped = self.stopped or stopped
        return [kept]

    def _stop(self, released: list[Event], data: dict[str, Any]) -> Iterable[Event]:
        self.stopped = True
        response = {
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": CONTENT_FILTER},
            "output": [],
        }
        number = data.get("sequence_number", 0) + 1
        kind = "response.incomplete"
        last = {"type": kind, "sequence_number": number, "response": response}
        return (*released, Event(last, kind))

    def _clean(self, holder: dict[str, Any], *, counts: bool) -> tuple[bool, bool]:
        """Clean what an item, a part or a list of these says, in place."""
        changed = stopped = False
        for name in _ITEM_TEXTS:
            text = holder.get(name)
            if not isinstance(text, str):
                continue
            if counts:
                cleaned, stream = self._channels.whole(text, json=name == "arguments")
                stopped = stopped or stream.stopped
            else:
                cleaned = self._channels.repeated(text, json=name == "arguments")
            if cleaned != text:
                holder[name] = cleaned
                changed = True
                if "logprobs" in holder:
                    holder["logprobs"] = []
        for name in _ITEM_PARTS:
            below = holder.get(name)
            for part in below if isinstance(below, list) else (below,):
                if isinstance(part, dict):
                    one, other = self._clean_part(name, part, counts=counts)
                    changed, stopped = changed or one, stopped or other
        return changed, stopped

    def _clean_part(self, name: str, part: dict[str, Any], *, counts: bool) -> tuple[bool, bool]:
        # Of a response only the output is the model's; the rest repeats the request.
        below = {"output": part.get("output")} if name == "response" else part
        return self._clean(below, counts=counts)


class AnthropicEditor:
    """Anthropic's Messages API."""

    def __init__(self, rules: Sanitizer) -> None:
        self.stopped = False
        self._channels = Channels(rules)
        self._kinds: dict[Any, tuple[str, str]] = {}

    @property
    def findings(self) -> Counter[tuple[str, str]]:
        self._channels.close_all()
        return self._channels.findings

    def body(self, payload: Any) -> bool:
        blocks = payload.get("content") if isinstance(payload, dict) else None
        changed = stopped = False
        for block in blocks if isinstance(blocks, list) else ():
            if stopped:
                block.clear()
                block.update({"type": "text", "text": ""})
                continue
            one, stopped = self._block(block)
            changed = changed or one
        if stopped:
            payload["stop_reason"] = "refusal"
        return changed or stopped

    def _block(self, block: dict[str, Any]) -> tuple[bool, bool]:
        changed = stopped = False
        for name in ("text", "thinking"):
            if isinstance(block.get(name), str):
                cleaned, stream = self._channels.whole(block[name])
                changed, stopped = changed or cleaned != block[name], stopped or stream.stopped
                block[name] = cleaned
        if block.get("input"):
            written = json.dumps(block["input"], ensure_ascii=False)
            cleaned, stream = self._channels.whole(written, json=True)
            stopped = stopped or stream.stopped
            if cleaned != written:
                block["input"] = {} if stream.stopped else json.loads(cleaned)
                changed = True
        return changed, stopped

    def event(self, event: Event) -> Iterable[Event]:
        data = event.data
        if not isinstance(data, dict):
            return (event,)
        index = data.get("index")
        if data.get("type") == "content_block_delta" and isinstance(data.get("delta"), dict):
            return self._piece(event, index, data["delta"])
        if data.get("type") == "content_block_start" and isinstance(
            data.get("content_block"), dict
        ):
            self._block(data["content_block"])
            return (event.changed(),)
        if data.get("type") != "content_block_stop" or index not in self._kinds:
            return (event,)
        rest, stopped = self._channels.close((index,))
        kind, name = self._kinds.pop(index)
        delta = {"type": kind, name: rest}
        last = _named("content_block_delta", index=index, delta=delta)
        if stopped:
            return self._stop(last, index)
        return (last, event) if rest else (event,)

    def _piece(self, event: Event, index: Any, delta: dict[str, Any]) -> Iterable[Event]:
        for name in _BLOCK_TEXTS:
            if isinstance(delta.get(name), str):
                is_json = name == "partial_json"
                delta[name], stream = self._channels.feed((index,), delta[name], json=is_json)
                self._kinds[index] = (str(delta.get("type")), name)
                if stream.stopped:
                    return self._stop(event.changed(), index)
        return (event.changed(),)

    def _stop(self, last: Event, index: Any) -> Iterable[Event]:
        self.stopped = True
        end = {"stop_reason": "refusal", "stop_sequence": None}
        return (
            last,
            _named("content_block_stop", index=index),
            _named("message_delta", delta=end, usage={"output_tokens": 0}),
            _named("message_stop"),
        )

    def end(self) -> Iterable[Event]:
        return ()


def _named(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)


OutputEditor = ChoicesEditor | ResponsesEditor | AnthropicEditor
