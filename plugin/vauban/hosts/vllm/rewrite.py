"""Edits answers on their way to the client: whole JSON bodies and events of a stream.

Stands behind the gate. Bytes are cut into events wherever they were cut on the way, decoded,
handed to the editors and written again; an answer or event that no editor changed passes byte for
byte. An editor may end a stream: the client gets what the editor says last, and the application's
work is cancelled.

Covers: answers with status below 400 that are JSON or server-sent events. Error answers pass: they
hold no model output. Anything else, and what can't be decoded or is over a limit, is replaced by
an error (`unreadable_answer`): it could not be edited, so it must not pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from pydantic_core import from_json, to_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Send

from vauban.errors import UnreadableAnswer
from vauban.hosts.vllm.answers import Answer

Message = MutableMapping[str, Any]

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_DONE: Final = b"[DONE]"
_HELD: Final = b": the answer is held\n\n"
"""Something to say meanwhile, for what gives up on silent connections."""
# It begins with a set, because `re` passes quickly over what is not in one.
_END_OF_EVENT = re.compile(rb"[\r\n](?:(?<=\n)\r?\n|(?<=\r)(?:\n\r?\n|\r))")


@dataclass(slots=True)
class Event:
    """One server-sent event. `data` is decoded, and None for a comment or `[DONE]`; `raw` is how
    it came, and None once it was changed."""

    data: Any
    name: str | None = None
    raw: bytes | None = None

    def changed(self) -> Self:
        self.raw = None
        return self

    @property
    def is_done(self) -> bool:
        """The `[DONE]` that OpenAI's streams end with."""
        return self.raw is not None and self.data is None and _DONE in self.raw


class Editor(Protocol):
    """Edits one answer. Made for it alone, so it may keep state."""

    stopped: bool
    """Set by the editor: the events it just returned are the last."""

    def body(self, payload: Any) -> bool:
        """Edit a whole body in place; True when something changed."""
        ...

    def event(self, event: Event) -> Iterable[Event]:
        """What goes out in the place of one event, in order."""
        ...

    def end(self) -> Iterable[Event]:
        """What goes out after the last event of a stream."""
        ...


class LastEditor(Protocol):
    """Comes after the editors and may wait for a store."""

    async def body(self, payload: Any) -> bool:
        """As `Editor.body`."""
        ...

    async def events(self, events: list[Event]) -> list[Event]:
        """What goes out in the place of these events, in order. An event that tells of an error
        must pass."""
        ...


class Keeper(Protocol):
    """Keeps a whole answer while it passes, in case that it is held until somebody releases it."""

    @property
    def holds(self) -> bool:
        """An editor has found what holds it: nothing more of it goes out."""
        ...

    def note(self, message: Message) -> None:
        """A message of the application's, before it is edited."""
        ...

    async def end(self) -> list[Event]:
        """The application is done: what ends the stream for the client instead."""
        ...

    async def replace(self, payload: Any) -> None:
        """As `end`, for a whole body."""
        ...


class Rewriter:
    """Stands in for `send` of one answer.

    :param editors: run in order, each on what the one before made of it.
    :param last: gets what they leave.
    :param keeper: without it no editor holds an answer.
    :param failed: makes the answer that replaces one that can't be edited.
    :param on_stop: called once when a stream or an unreadable answer is ended early: cancels what
        the application still does for it.
    """

    def __init__(
        self,
        send: Send,
        editors: Sequence[Editor],
        failed: Callable[[UnreadableAnswer], Answer],
        on_stop: Callable[[], None] = lambda: None,
        last: LastEditor | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._send = send
        self._editors = editors
        self._last = last
        self._keeper = keeper
        self._failed = failed
        self.on_stop = on_stop
        self.stopped = False
        self._start: Message | None = None
        self._mode: Callable[[Message], Any] | None = None
        self._buffer = bytearray()
        self._searched = 0

    async def send(self, message: Message) -> None:
        if self.stopped:
            return
        if self._keeper is not None:
            self._keeper.note(message)
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and self._mode is not None:
            await self._mode(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        headers = Headers(raw=list(message.get("headers", [])))
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if message["status"] >= 400 or not (self._editors or self._last):
            await self._send(message)
            return
        if kind == _EVENTS:
            self._mode = self._stream
            plain = MutableHeaders(raw=headers.raw)
            del plain["content-length"]
            await self._send({**message, "headers": plain.raw})
            return
        self._start = message
        self._mode = self._whole
        if kind != _JSON:
            await self._fail("the answer is neither JSON nor a stream of events")

    # -- whole bodies --------------------------------------------------------------------------

    async def _whole(self, message: Message) -> None:
        self._buffer += message.get("body", b"")
        if len(self._buffer) > MAX_BODY_BYTES:
            await self._fail(f"the answer is over {MAX_BODY_BYTES} bytes")
            return
        if message.get("more_body", False):
            return
        body = bytes(self._buffer)
        try:
            payload = _decoded(body) if body else None  # an answer to HEAD has none
        except (ValueError, RecursionError):
            await self._fail("the answer is not valid JSON")
            return
        changed = False
        for editor in self._editors:
            changed = editor.body(payload) or changed
        if self._last is not None:
            changed = await self._last.body(payload) or changed
        if self._keeper is not None and self._holds:
            await self._keeper.replace(payload)
            changed = True
        if changed:
            body = dump(payload)
        start = self._start or {}
        headers = MutableHeaders(raw=list(start.get("headers", [])))
        headers["content-length"] = str(len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _fail(self, why: str) -> None:
        """Replace an answer of which nothing has been sent."""
        answer = self._failed(UnreadableAnswer(why))
        old = Headers(raw=list((self._start or {}).get("headers", [])))
        kept = [pair for pair in old.raw if pair[0].lower().startswith(b"x-vauban-")]
        headers = MutableHeaders(raw=kept)
        headers["content-type"] = answer.content_type
        headers["content-length"] = str(len(answer.body))
        self._stop()
        start = {"type": "http.response.start", "status": answer.status, "headers": headers.raw}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": answer.body, "more_body": False})

    # -- streams -------------------------------------------------------------------------------

    async def _stream(self, message: Message) -> None:
        self._buffer += message.get("body", b"")
        last = not message.get("more_body", False)
        out = bytearray()
        for raw in () if self._holds else self._split(last):
            out += await self._written(self._edit(raw))
            if self.stopped or self._holds:
                break
        if not self.stopped and len(self._buffer) > MAX_EVENT_BYTES:
            out += await self._written(self._broken(f"an event is over {MAX_EVENT_BYTES} bytes"))
        if last and not (self.stopped or self._holds):
            out += await self._written(self._through(0, (), ending=True))
        if self._keeper is not None and self._holds:
            self._buffer.clear()
            out += await self._written(await self._keeper.end()) if last else _HELD
        if out or last or self.stopped:
            more = not (last or self.stopped)
            await self._send({"type": "http.response.body", "body": bytes(out), "more_body": more})

    @property
    def _holds(self) -> bool:
        return self._keeper is not None and self._keeper.holds

    def _split(self, last: bool) -> Iterable[bytes]:
        """The events that are complete, each with the blank line that ends it."""
        while self._buffer and (
            found := _END_OF_EVENT.search(self._buffer, max(0, self._searched - 3))
        ):
            raw = bytes(self._buffer[: found.end()])
            del self._buffer[: found.end()]
            self._searched = 0
            yield raw
        self._searched = len(self._buffer)
        if last and self._buffer:
            raw = bytes(self._buffer)
            self._buffer.clear()
            yield raw

    async def _written(self, events: list[Event]) -> bytes:
        if self._last is not None:
            events = await self._last.events(events)
        return b"".join(map(_write, events))

    def _edit(self, raw: bytes) -> list[Event]:
        event = _parse(raw)
        if event is None:
            return self._broken("an event is not valid JSON")
        return self._through(0, (event,))

    def _through(self, first: int, events: Iterable[Event], *, ending: bool = False) -> list[Event]:
        """Send events through the editors from `first` on; at the end of a stream also what
        each of them still has to say, through those after it."""
        current = list(events)
        for editor in self._editors[first:]:
            given: list[Event] = []
            for event in current:
                given.extend(editor.event(event))
                if editor.stopped:
                    break
            if ending and not editor.stopped:
                given.extend(editor.end())
            current = given
            if editor.stopped and not self._holds:
                self._stop()
        return current

    def _broken(self, why: str) -> list[Event]:
        """End a stream that can't be read on."""
        answer = self._failed(UnreadableAnswer(why))
        self._stop()
        return [Event(json.loads(answer.body), raw=b"data: " + answer.body + b"\n\n")]

    def _stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self._buffer.clear()
            self.on_stop()


def dump(payload: Any) -> bytes:
    """JSON as vLLM writes it; text that is not valid unicode is escaped."""
    try:
        return to_json(payload, inf_nan_mode="constants")
    except ValueError:
        return json.dumps(payload, separators=(",", ":")).encode()


def _decoded(data: bytes) -> Any:
    """The value of JSON text.

    :raises ValueError: it is none.
    """
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:
        return json.loads(data)  # takes text that is not valid unicode, and deep nesting


def _parse(raw: bytes) -> Event | None:
    """One event, None when its data is not JSON."""
    if raw.startswith(b"data: ") and raw.find(b"\n", 0, -2) < 0 and b"\r" not in raw:
        name, data = None, raw[6:].strip()
    else:
        lines = [line.partition(b":") for line in raw.splitlines()]
        values = {
            field: [value.removeprefix(b" ") for name, _, value in lines if name == field]
            for field in (b"data", b"event")
        }
        if not values[b"data"]:
            return Event(None, raw=raw)
        data = b"\n".join(values[b"data"]).strip()
        name = values[b"event"][-1].decode("utf-8", "replace") if values[b"event"] else None
    if data == _DONE:
        return Event(None, name, raw)
    try:
        return Event(_decoded(data), name, raw)
    except (ValueError, RecursionError):
        return None


def _write(event: Event) -> bytes:
    if event.raw is not None:
        return event.raw
    head = b"" if event.name is None else b"event: " + event.name.encode() + b"\n"
    return head + b"data: " + dump(event.data) + b"\n\n"
