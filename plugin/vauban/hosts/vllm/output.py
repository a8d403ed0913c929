"""Sanitises the text in answers of vLLM's protocols: every channel of every choice, whole or
streamed.

A channel is what a client puts together into one text: the content, the reasoning, the arguments
of one tool call. Each has a reader of its own (`text/sanitize.py`); the texts of several items or
blocks are read together besides (`text/sequel.py`), and what begins at the end of a channel may not
end in the next one. What is held back of a channel comes out with a later event, at the latest with
the one that ends the channel. Token ids and log-probabilities spell the text too, so they come out
with the text that they belong to, or not at all when something was taken out of it.

Does not cover: answers of token ids without text (`/inference/v1/generate` in its default mode);
what the arguments of one call say before and after something else, read as one text; halves of one
secret in two choices: they are alternatives that are drawn apart, and two requests say as much.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Final, Protocol

from vauban.errors import MalformedRequest
from vauban.hosts.vllm.answers import CONTENT_FILTER
from vauban.hosts.vllm.output_channels import Channels, Key
from vauban.hosts.vllm.rewrite import Event
from vauban.text.sanitize import Sanitizer, Stream
from vauban.text.sequel import Sequel

_TEXTS: Final = ("reasoning", "reasoning_content", "content", "refusal", "text")
_TEXT_NAMES: Final = frozenset(_TEXTS)
_CALL_NAMES: Final = frozenset({"tool_calls", "function_call"})
_ATTACHED: Final = ("logprobs", "token_ids")
_RESUMED: Final = ("content", "refusal", "text")
"""Channels that may go on after another one: text on both sides of a tool call, for instance."""
_DONE: Final = b"data: [DONE]\n\n"


class Told(Protocol):
    """What a client is told of what is withheld: in words, and for its program."""

    @property
    def text(self) -> str: ...

    @property
    def approval(self) -> dict[str, Any] | None: ...


class ProtocolEditor:
    """What the editors of all protocols have in common.

    `stopped`: a detector has ended the answer. `held`: it did so until somebody releases the
    answer; then `event` gives no end, and whoever keeps the answer asks for one by `closing`.
    """

    def __init__(self, rules: Sanitizer, *, repeats: bool = False) -> None:
        self.stopped = self.held = False
        self.channels = Channels(rules, repeats=repeats)

    @property
    def findings(self) -> Counter[tuple[str, str]]:
        self.channels.close_all()
        return self.channels.findings

    def ended_by(self, stream: Stream | ProtocolEditor | None) -> bool:
        """Note whether this reader has ended the answer."""
        if stream is not None and stream.stopped:
            self.stopped, self.held = True, self.held or stream.held
        return self.stopped

    def closed(self, *shown: Event) -> Iterable[Event]:
        """These events, and what ends the stream, unless it is held."""
        return shown if self.held else (*shown, *self.closing(None))

    def closing(self, told: Told | None) -> Iterable[Event]:
        """What ends a stream that is stopped.

        :param told: what the client is told of an answer that is held.
        """
        raise NotImplementedError


class ChoicesEditor(ProtocolEditor):
    """Chat and plain completions, and whatever else answers in `choices`."""

    def __init__(self, rules: Sanitizer) -> None:
        super().__init__(rules)
        self._choices: dict[int, _Choice] = {}
        self._last: tuple[Event, dict[str, Any]] | None = None

    def body(self, payload: Any) -> bool:
        choices = payload.get("choices") if isinstance(payload, dict) else None
        changed = False
        for index, choice in enumerate(choices if isinstance(choices, list) else ()):
            changed = self._whole(index, choice) or changed
        return changed

    def event(self, event: Event) -> Iterable[Event]:
        data = event.data
        choices = data.get("choices") if isinstance(data, dict) else None
        if not isinstance(choices, list) or not choices:
            return (event,)
        for part in choices:
            index = part.get("index", 0)
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice(self.channels, index)
            choice.edit(part)
            if self.ended_by(choice.ended_by):
                self._last = (event, part)
                return self.closed()
        return (event.changed(),)

    def end(self) -> Iterable[Event]:
        return ()

    def closing(self, told: Told | None) -> Iterable[Event]:
        """See `ProtocolEditor`."""
        if self._last is None:
            return ()
        event, last = self._last
        is_chat = "delta" in last
        ended = []
        for index, choice in sorted(self._choices.items()):
            said: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
            if index == last.get("index", 0):
                said = {name: last[name] for name in said}
                if told is not None:
                    _tell(
                        said["delta"] if is_chat else said, told, "content" if is_chat else "text"
                    )
            elif choice.finished:
                continue
            ended.append(
                {"index": index, **said, "logprobs": None, "finish_reason": CONTENT_FILTER}
            )
        event.data["choices"] = ended
        return (event.changed(), Event(None, raw=_DONE))

    def notice(self, payload: Any, told: Told) -> None:
        """Tell the client of a whole answer that is held."""
        choice = next(c for c in payload["choices"] if c.get("finish_reason") == CONTENT_FILTER)
        message = choice.get("message")
        if isinstance(message, dict):
            _tell(message, told, "content")
        else:
            _tell(choice, told, "text")

    def _whole(self, index: int, choice: dict[str, Any]) -> bool:
        stopped = cut = changed = False
        for holder, name, json in _texts_of(choice.get("message"), choice):
            if stopped:
                holder[name] = "{}" if json else ""
                continue
            cleaned, stream = self.channels.whole(holder[name], json=json, turn=index)
            changed = changed or cleaned != holder[name]
            holder[name] = cleaned
            stopped, cut = stream.stopped, cut or bool(stream.cuts) or stream.stopped
            self.ended_by(stream)
        if cut:
            for name in _ATTACHED:
                if choice.get(name) is not None:
                    choice[name] = None
        if stopped:
            choice["finish_reason"] = CONTENT_FILTER
            if isinstance(choice.get("message"), dict):
                choice["message"].pop("tool_calls", None)
        return changed or stopped or cut


class _Choice:
    """One choice of a stream."""

    def __init__(self, channels: Channels, index: int) -> None:
        self.finished = False
        self.ended_by: Stream | None = None
        self._channels = channels
        self._index = index
        self._current: Key | None = None
        self._stream: Stream | None = None
        self._waiting: deque[tuple[Stream, int, int, dict[str, Any]]] = deque()

    def edit(self, part: dict[str, Any]) -> None:
        """Edit what one event says of this choice in place."""
        delta = part.get("delta")
        attached = {name: part.pop(name) for name in _ATTACHED if part.get(name)}
        before = 0
        for holder, name, json in _texts_of(delta, part):
            key = (self._index, name, _call_index(delta, holder) if json else 0)
            if key != self._current:
                self._leave(delta if isinstance(delta, dict) else part)
                self._current, self._stream = key, self._channels.reader(key)
            before = self._stream.fed if self._stream is not None else 0
            series = None if json or name in _RESUMED else f"{name} {self._index}"
            holder[name], self._stream = self._channels.feed(
                key, holder[name], json=json, series=series, turn=self._index
            )
            if self._stream.stopped:
                self.ended_by = self._stream
                return
        if self._stream is None:
            part.update(attached)
        elif attached and not isinstance(self._stream, Sequel):  # which knows no token's fate
            self._waiting.append((self._stream, before, self._stream.taken, attached))
        if part.get("finish_reason") is not None:
            self.finished, self._current = True, None
            for key in self._channels.of_choice(self._index):
                if self.ended_by is None:
                    self._close(key, delta if isinstance(delta, dict) else part)
        self._attach(part)

    def _leave(self, holder: dict[str, Any]) -> None:
        """Another channel begins. What is held back of an answer waits for its next piece, which
        clients put behind it; reasoning and arguments are shown as ended, so they end here."""
        if self._current is not None and self._current[1] not in _RESUMED:
            self._close(self._current, holder)

    def _close(self, key: Key, holder: dict[str, Any]) -> None:
        """End a channel; what is left of it goes into `holder`."""
        rest, stream = self._channels.close(key)
        if stream is not None and stream.stopped:
            self.ended_by = stream
        if not rest:
            return
        if key[1] != "arguments":
            holder[key[1]] = (holder.get(key[1]) or "") + rest
            return
        calls = holder.setdefault("tool_calls", [])
        for call in calls:
            if call.get("index") == key[2]:
                function = call.setdefault("function", {})
                function["arguments"] = (function.get("arguments") or "") + rest
                return
        calls.insert(0, {"index": key[2], "function": {"arguments": rest}})

    def _attach(self, part: dict[str, Any]) -> None:
        """Give out the log-probabilities and ids of text that has gone out as it was said."""
        while self._waiting:
            stream, start, end, attached = self._waiting[0]
            if stream.released < end and not self.finished:
                return
            self._waiting.popleft()
            if stream.stopped or stream.cuts.touch(start, end):
                continue
            for name, value in attached.items():
                part[name] = joined(part.get(name), value)


def _tell(holder: dict[str, Any], told: Told, name: str) -> None:
    said = holder.get(name) or ""
    holder[name] = f"{said}\n\n{told.text}" if said else told.text
    holder["approval"] = told.approval


def keep_in_step(data: dict[str, Any]) -> None:
    """Have each token come with its text and in an event of its own; a stream's are counted by its
    events, and what is told of a token that comes early spells what is taken out of the text.

    vLLM holds text back while it may become a stop string, but not what is beside it.

    :raises MalformedRequest: a stream with both.
    """
    options = data.get("sampling_params")
    places = [fields for fields in (data, options) if isinstance(fields, dict)]
    for fields in places:
        fields.pop("stream_interval", None)
    told = data.get("output_mode") == "text" or any(
        fields.get(name) not in (None, False, 0) or type(fields.get(name)) is int
        for fields in places
        for name in ("logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids")
    )
    stopping = any(fields.get("stop") for fields in places)
    if data.get("stream") and told and stopping:
        raise MalformedRequest(
            "a stream with stop strings can't tell log-probabilities or token ids", param="stop"
        )


def _call_index(delta: Any, function: dict[str, Any]) -> Any:
    for call in delta.get("tool_calls") or () if isinstance(delta, dict) else ():
        if call.get("function") is function:
            return call.get("index", 0)
    return 0


def joined(known: Any, more: Any) -> Any:
    """Two pieces of parallel lists as one."""
    if known is None:
        return more
    if isinstance(known, list) and isinstance(more, list):
        return known + more
    if isinstance(known, dict) and isinstance(more, dict):
        return {name: joined(known.get(name), more.get(name)) for name in known | more}
    return known


def _texts_of(*holders: Any) -> list[tuple[dict[str, Any], str, bool]]:
    """The texts of a message, delta or choice: their holder, name, and whether they are JSON."""
    texts = []
    for holder in holders:
        if not isinstance(holder, dict):
            continue
        if not _TEXT_NAMES.isdisjoint(holder):
            texts += [(holder, name, False) for name in _TEXTS if isinstance(holder.get(name), str)]
        if _CALL_NAMES.isdisjoint(holder):
            continue
        calls = [call.get("function") for call in holder.get("tool_calls") or ()]
        for function in (*calls, holder.get("function_call")):
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                texts.append((function, "arguments", True))
    return texts
