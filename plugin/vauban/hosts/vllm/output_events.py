"""Sanitises answers of the Responses API and of Anthropic's Messages API; see `output.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from vauban.hosts.vllm.answers import CONTENT_FILTER
from vauban.hosts.vllm.output import ChoicesEditor, ProtocolEditor, Told
from vauban.hosts.vllm.rewrite import Event
from vauban.hosts.vllm.withheld import text_block
from vauban.hosts.vllm.withheld_responses import item_events, message_item
from vauban.protocol.owner import without_canary
from vauban.protocol.shapes import Shape
from vauban.text.sanitize import Sanitizer

_ITEM_TEXTS: Final = (
    "text", "refusal", "arguments", "code", "input", "output", "logs", "query", "pattern", "url",
)  # fmt: skip
_ITEM_PARTS: Final = ("content", "summary", "outputs", "output", "action", "item", "part")
_SERIES: Final = {
    "output_text": "text",
    "refusal": "refusal",
    "reasoning_text": "reasoning",
    "summary_text": "summary",
    "reasoning_summary_text": "summary",
}
"""What programs put together of several items, by the type of a part and of a piece."""
_BLOCK_TEXTS: Final = {"text": "text", "thinking": "thinking", "partial_json": "partial_json"}


def output_editor(rules: Sanitizer, shape: Shape) -> OutputEditor:
    """The editor for answers of a protocol."""
    if shape is Shape.RESPONSES:
        return ResponsesEditor(rules)
    return AnthropicEditor(rules) if shape is Shape.ANTHROPIC else ChoicesEditor(rules)


class ResponsesEditor(ProtocolEditor):
    """The Responses API.

    Its events are numbered, so none is added and none is left out: the last piece of each text is
    kept until the event after it, and takes what was held back.
    """

    def __init__(self, rules: Sanitizer) -> None:
        super().__init__(rules, repeats=True)
        self._kept: Event | None = None
        self._key: tuple[Any, ...] = ()
        self._response: dict[str, Any] = {}
        self._number = self._place = 0

    def body(self, payload: Any) -> bool:
        if not isinstance(payload, dict):
            return False
        items = payload.get("output")
        items = items if isinstance(items, list) else []
        changed = _mend(payload)
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
        self._number = data.get("sequence_number", 0) + 1
        self._place = data.get("output_index", self._place)
        if isinstance(data.get("response"), dict):
            # It may say its texts a little otherwise than their pieces did, so it is read anew.
            anew = ResponsesEditor(self.channels.rules)
            anew.body(data["response"])
            self._response = data["response"]
            if anew.stopped:  # by what no piece has said
                released = self._flush()
                if not self.stopped:
                    self.channels.findings.update(anew.findings)
                    self.ended_by(anew)
                return self.closed(*released)
        if kind.endswith(".delta") and isinstance(data.get("delta"), str):
            return self._piece(event, kind)
        released = self._flush()
        if self.stopped:
            return self.closed(*released)
        self._clean(data, counts=False)
        if self.stopped:
            return self.closed(*released, event.changed())
        return (*released, event.changed())

    def end(self) -> Iterable[Event]:
        released = self._flush()
        return self.closed(*released) if self.stopped else released

    def _piece(self, event: Event, kind: str) -> Iterable[Event]:
        data = event.data
        places = ("item_id", "output_index", "content_index", "summary_index")
        key = (kind, *(data.get(name) for name in places))
        released = self._flush() if self._kept is not None and key != self._key else []
        if self.stopped:
            return self.closed(*released)
        if self._kept is not None:
            released.append(self._kept)
        is_json = "arguments" in kind
        series = _SERIES.get(_kind_of(data))
        data["delta"], stream = self.channels.feed(key, data["delta"], json=is_json, series=series)
        if data.get("logprobs"):
            data["logprobs"] = []  # they spell what is still held back
        self._kept, self._key = event.changed(), key
        if self.ended_by(stream):
            kept, self._kept = self._kept, None
            return self.closed(*released, kept)
        return released

    def _flush(self) -> list[Event]:
        if self._kept is None:
            return []
        kept, self._kept = self._kept, None
        rest, stream = self.channels.close(self._key)
        kept.data["delta"] += rest
        self.ended_by(stream)
        return [kept]

    def closing(self, told: Told | None) -> Iterable[Event]:
        """See `ProtocolEditor`."""
        response = {
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": CONTENT_FILTER},
            "output": [],
        }
        steps: list[Event] = []
        if told is not None:
            self.notice(response, told)
            (item,) = response["output"]
            steps = item_events(item, self._place + 1)
        kind = "response.incomplete"
        steps.append(Event({"type": kind, "response": response}, kind))
        for number, event in enumerate(steps, self._number):
            event.data["sequence_number"] = number
        return steps

    def notice(self, payload: Any, told: Told) -> None:
        """Tell the client of a whole answer that is held."""
        payload["output"].append(message_item(told.text))
        payload["approval"] = told.approval

    def _clean(self, holder: dict[str, Any], *, counts: bool) -> tuple[bool, bool]:
        """Clean what an item, a part or a list of these says, in place."""
        changed = stopped = False
        for name in _ITEM_TEXTS:
            text = holder.get(name)
            if not isinstance(text, str) or not text:
                continue
            read = self.channels.whole if counts else self.channels.repeated
            series = _SERIES.get(_kind_of(holder))
            cleaned, stream = read(text, json=name == "arguments", series=series)
            stopped = self.ended_by(stream)
            if cleaned != text:
                holder[name] = cleaned
                changed = True
                if "logprobs" in holder:
                    holder["logprobs"] = []
        for name in _ITEM_PARTS:
            below = holder.get(name)
            for part in below if isinstance(below, list) else (below,):
                if isinstance(part, dict):
                    one, other = self._clean(part, counts=counts)
                    changed, stopped = changed or one, stopped or other
        return changed, stopped


def _kind_of(holder: dict[str, Any]) -> str:
    """What kind of text an event, a part or an item brings."""
    kind = str(holder.get("type")).removeprefix("response.")
    return kind.removesuffix(".delta").removesuffix(".done")


def _mend(response: dict[str, Any]) -> bool:
    """Take the canary out of what a response repeats of its request."""
    told = response.get("instructions")
    mended = without_canary(told)
    if mended == told:
        return False
    response["instructions"] = mended
    return True


class AnthropicEditor(ProtocolEditor):
    """Anthropic's Messages API."""

    def __init__(self, rules: Sanitizer) -> None:
        super().__init__(rules)
        self._kinds: dict[Any, tuple[str, str]] = {}
        self._index: Any = 0

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

    def notice(self, payload: Any, told: Told) -> None:
        """Tell the client of a whole answer that is held."""
        payload["content"].append({"type": "text", "text": told.text})
        payload["approval"] = told.approval

    def _block(self, block: dict[str, Any]) -> tuple[bool, bool]:
        changed = stopped = False
        for name in ("text", "thinking"):
            if isinstance(block.get(name), str) and block[name]:
                cleaned, stream = self.channels.whole(block[name], series=name)
                changed, stopped = changed or cleaned != block[name], self.ended_by(stream)
                block[name] = cleaned
        if block.get("input"):
            written = json.dumps(block["input"], ensure_ascii=False)
            cleaned, stream = self.channels.whole(written, json=True)
            stopped = self.ended_by(stream)
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
            if self.stopped:
                self._index = index
                return self.closed(event.changed())
            return (event.changed(),)
        if data.get("type") != "content_block_stop" or index not in self._kinds:
            return (event,)
        rest, stream = self.channels.close((index,))
        kind, name = self._kinds.pop(index)
        delta = {"type": kind, name: rest}
        last = _named("content_block_delta", index=index, delta=delta)
        if self.ended_by(stream):
            self._index = index
            return self.closed(last)
        return (last, event) if rest else (event,)

    def _piece(self, event: Event, index: Any, delta: dict[str, Any]) -> Iterable[Event]:
        for name in _BLOCK_TEXTS:
            if isinstance(delta.get(name), str):
                is_json = name == "partial_json"
                delta[name], stream = self.channels.feed(
                    (index,), delta[name], json=is_json, series=None if is_json else name
                )
                self._kinds[index] = (str(delta.get("type")), name)
                if self.ended_by(stream):
                    self._index = index
                    return self.closed(event.changed())
        return (event.changed(),)

    def closing(self, told: Told | None) -> Iterable[Event]:
        """See `ProtocolEditor`."""
        end = {"stop_reason": "refusal", "stop_sequence": None}
        last = _named("message_delta", delta=end, usage={"output_tokens": 0})
        notice: list[Event] = []
        if told is not None:
            notice = text_block(self._index + 1, told.text)
            last.data["approval"] = told.approval
        ended = _named("content_block_stop", index=self._index)
        return (ended, *notice, last, _named("message_stop"))

    def end(self) -> Iterable[Event]:
        return ()


def _named(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)


OutputEditor = ChoicesEditor | ResponsesEditor | AnthropicEditor
