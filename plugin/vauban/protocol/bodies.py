"""Where the text is in a request body of vLLM's routes, and how it is put back.

Every string of the body is read, names of properties included, unless its field is known to hold
no text for a model (`_NO_TEXT`) or is a picture's or a sound's data: a field that a new API
version brings is read by default. Roles are checked, because chat templates print
them unescaped. What a role claims gives no trust: `system` and `developer` text is the operator's
only when the caller's key has the scope `prompt:system`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from vauban.errors import MalformedRequest, RequestTooLarge
from vauban.types import Origin, Segment

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_DEPTH = 48
MAX_VALUES = 200_000

# Names, ids, numbers as text, sampling options: read by the server, never by the model.
_NO_TEXT = frozenset(
    {
        "model", "user", "request_id", "session_id", "stop", "bad_words", "cache_salt",
        "logit_bias", "metadata", "service_tier", "truncation", "truncation_side",
        "encoding_format", "embed_dtype", "endianness", "prompt_cache_key", "include",
        "previous_response_id", "stream_options", "vllm_xargs", "sampling_params",
        "kv_transfer_params", "ec_transfer_params", "mm_payload", "task", "stop_sequences",
        "embedding_types", "input_type", "padding",
    }
)  # fmt: skip
_CONVERSATION = frozenset({"messages", "input", "prompt"})
_TOKEN_FIELDS = frozenset({"token_ids", "prompt", "input"})
_MEDIA = frozenset(
    {"image_url", "image", "input_image", "image_pil", "image_embeds", "audio_url", "input_audio",
     "audio_embeds", "video_url", "video", "file", "source", "images"}
)  # fmt: skip
_TOOL_TYPES = frozenset(
    {
        "function_call_output", "tool_result", "custom_tool_call_output",
        "computer_call_output", "local_shell_call_output", "mcp_call",
    }
)  # fmt: skip
_TEXT_KEYS = frozenset({"text", "content", "output", "input_text", "refusal"})
_TEXT_PARTS = {
    "text": "text", "input_text": "text", "output_text": "text", "reasoning_text": "text",
    "summary_text": "text", "thinking": "thinking",
}  # fmt: skip
_PLAIN_NAME = re.compile(r"[\w.$/:\-]{0,24}", re.ASCII)
_MEDIA_VALUE = re.compile(r"(?:https?://|data:)[!-~]*|[A-Za-z0-9+/=_-]{256,}")
_EMBEDDINGS = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds"})
_READ_OPTIONS = frozenset({"structured_outputs", "bad_words"})
_TURNS = ("messages.", "input.")
NO_CHARACTER = "\ufffd"

Decode = Callable[[Sequence[int]], str]
Encode = Callable[[str], "list[int]"]


@dataclass(slots=True)
class Leaf:
    """One piece of text and where it stands: `container[key]`.

    `frame`: it is a user's turn or tool output, so the sandwich may frame it. `raw`: it is read,
    but a caller who may write operator text wrote it token by token, so it stays as it is.
    `own_words`: a turn, sent as the model's or the system's. `part_of`: the field, or entry of a
    list, that it is a piece of.
    """

    container: Any
    key: Any
    text: str
    origin: Origin
    frame: bool = False
    own_words: bool = False
    token_ids: bool = False
    raw: bool = False
    part_of: str = ""

    def put(self, text: str, encode: Encode) -> None:
        if text == self.text or self.container is None or self.raw:
            return
        self.container[self.key] = encode(text) if self.token_ids else text
        self.text = text


@dataclass(frozen=True, slots=True)
class _Place:
    """`turn`: inside the content of a conversation. `message`: inside one message, whose role
    counts and not that of a part. `own_words`: said to be the model's or the system's, which
    models read unfenced."""

    origin: Origin
    turn: bool = False
    message: bool = False
    own_words: bool = False
    depth: int = 0
    part_of: str = ""

    def deeper(self, *, turn: bool) -> _Place:
        return replace(self, turn=turn, depth=self.depth + 1)


class Body:
    """The parsed body of one request and all text in it.

    :param trusted_system: the caller may write operator text.
    :param decode: the served tokenizer, for token ids in place of text.
    :param max_leaves: most pieces of text; the walk ends there.
    :raises MalformedRequest: unknown roles, embeddings, nesting that is too deep, too many values.
    :raises RequestTooLarge: more than `max_leaves` pieces of text.
    """

    def __init__(
        self,
        data: dict[str, Any],
        *,
        trusted_system: bool,
        decode: Decode,
        max_leaves: int = MAX_VALUES,
    ) -> None:
        self.data = data
        self._max_leaves = max_leaves
        self._values = 0
        self._trusted_system = trusted_system
        self._decode = decode
        self._json_strings: list[tuple[Any, Any]] = []
        self.leaves: list[Leaf] = []
        self.has_media = False
        if data.get("prompt_embeds") is not None:
            raise MalformedRequest(
                "prompt embeddings hold no text that could be screened", param="prompt_embeds"
            )
        if data.get("chat_template") is not None:
            raise MalformedRequest(
                "a chat template may not come from a client", param="chat_template"
            )
        for name in list(data):
            if name not in _NO_TEXT:
                self._field(name, data[name])
        sampling = data.get("sampling_params")
        if isinstance(sampling, dict):
            for name in _READ_OPTIONS & set(sampling):
                self._walk(sampling, name, sampling[name], _Place(Origin.USER, part_of="options"))

    @property
    def segments(self) -> list[Segment]:
        return [
            Segment(leaf.text, leaf.origin, "" if leaf.frame or leaf.own_words else leaf.part_of)
            for leaf in self.leaves
        ]

    def put(self, texts: Sequence[str], encode: Encode) -> None:
        """Write back what the model gets, parallel to `segments`."""
        for leaf, text in zip(self.leaves, texts, strict=True):
            if leaf.container is None and text != leaf.text:
                raise MalformedRequest("a property name holds hidden or control characters")
            leaf.put(text, encode)
        for container, key in reversed(self._json_strings):  # the inner ones first
            container[key] = json.dumps(container[key], ensure_ascii=False)
        self._json_strings.clear()

    def has_token_ids(self) -> bool:
        return any(leaf.token_ids for leaf in self.leaves)

    # -- walking -----------------------------------------------------------------------------

    def _field(self, name: str, value: Any) -> None:
        if name in _TOKEN_FIELDS and self._tokens(self.data, name, value):
            return
        origin = Origin.USER
        if name in ("system", "instructions") and self._trusted_system:
            origin = Origin.OPERATOR
        elif name in ("documents", "texts"):
            origin = Origin.DOCUMENT
        part_of = "options" if isinstance(value, str) and name not in _CONVERSATION else name
        place = _Place(origin, turn=name in _CONVERSATION, part_of=part_of)
        self._walk(self.data, name, value, place)

    def _tokens(self, container: Any, key: Any, value: Any) -> bool:
        """Token ids in place of text. True when `value` was that.

        :raises MalformedRequest: something that is neither ids nor text. vLLM reads 12.0, "12"
            and true as ids as well, so a list of those would reach the model unread.
        """
        if not isinstance(value, list) or not value:
            return False
        if all(type(item) is int for item in value):
            try:
                text = self._decode(value)
            except (OverflowError, IndexError, TypeError, ValueError):
                raise MalformedRequest("token ids outside the vocabulary", param=str(key)) from None
            if NO_CHARACTER in text and not self._trusted_system:
                # One stray byte can turn a whole run of byte tokens into this: text would hide.
                raise MalformedRequest("token ids that are not whole text", param=str(key))
            self.leaves.append(
                Leaf(container, key, text, Origin.USER, token_ids=True, raw=self._trusted_system)
            )
            return True
        if all(isinstance(item, list) and item and type(item[0]) is int for item in value):
            return all(self._tokens(value, index, item) for index, item in enumerate(value))
        if key == "token_ids" or any(not isinstance(item, (str, dict)) for item in value):
            raise MalformedRequest("token ids must be integers", param=str(key))
        return False

    def _walk(self, container: Any, key: Any, value: Any, place: _Place) -> None:
        if place.depth > MAX_DEPTH:
            raise MalformedRequest("the body is nested too deeply")
        if isinstance(value, str) and key == "arguments":
            parsed = _json_object(value)
            if parsed is not None:
                container[key] = value = parsed
                self._json_strings.append((container, key))
        if isinstance(value, str):
            frame = place.turn and not place.own_words
            own_words = place.turn and place.own_words
            self._add(Leaf(container, key, value, place.origin, frame, own_words), place)
        elif isinstance(value, list):
            self._list(value, place)
        elif isinstance(value, dict):
            self._mapping(value, place)

    def _add(self, leaf: Leaf, place: _Place) -> None:
        leaf.part_of = place.part_of
        self.leaves.append(leaf)
        if len(self.leaves) > self._max_leaves:
            raise RequestTooLarge(f"more than {self._max_leaves} pieces of text")

    def _count(self, values: int) -> None:
        """Bounds the walk: a body of a few megabytes can hold millions of tiny values."""
        self._values += values
        if self._values > MAX_VALUES:
            raise MalformedRequest(f"more than {MAX_VALUES} values")

    def _list(self, value: list[Any], place: _Place) -> None:
        self._count(len(value))
        _join_text_parts(value)
        below = place.deeper(turn=place.turn)
        for index, item in enumerate(value):
            if isinstance(item, (str, list, dict)):
                if place.depth == 0:
                    below = replace(below, part_of=f"{place.part_of}.{index}")
                self._walk(value, index, item, below)

    def _mapping(self, value: dict[str, Any], place: _Place) -> None:
        self._count(len(value))
        if place.turn:
            place = self._whose(value, place)
        names = [n for n in value if not (place.turn and _PLAIN_NAME.fullmatch(n))]
        if names:  # a tool's properties: templates print their names as well
            self._add(Leaf(None, None, _words(names), place.origin), place)
        for name, item in value.items():
            if not isinstance(item, (str, list, dict)):
                continue
            known = place.turn and isinstance(item, str) and _PLAIN_NAME.fullmatch(item)
            if known and name in ("type", "role"):
                continue
            if place.turn and name in _MEDIA:
                self._media(value, name, item, place)
            else:
                self._walk(value, name, item, place.deeper(turn=place.turn and name in _TEXT_KEYS))

    def _whose(self, value: dict[str, Any], place: _Place) -> _Place:
        """Origin of a message or part: by the message's role, which gives no trust by itself."""
        role = value.get("role")
        if role is not None and (not isinstance(role, str) or role not in ROLES):
            raise MalformedRequest(f"role must be one of {', '.join(sorted(ROLES))}", param="role")
        kind = value.get("type")
        if isinstance(kind, str) and kind in _EMBEDDINGS:
            raise MalformedRequest("embeddings hold no text that could be screened", param="type")
        if isinstance(kind, str) and kind in _TOOL_TYPES:
            return replace(place, origin=Origin.TOOL, message=True, own_words=False)
        if role is None or place.message:
            return place
        if role in ("tool", "function"):
            return replace(place, origin=Origin.TOOL, message=True, own_words=False)
        if role in ("system", "developer"):
            origin = Origin.OPERATOR if self._trusted_system else Origin.USER
            return replace(place, origin=origin, message=True, own_words=True)
        return replace(place, origin=Origin.USER, message=True, own_words=role == "assistant")

    def _media(self, container: Any, key: Any, value: Any, place: _Place) -> None:
        """Images and sound pass as URLs or long base64; every other string in there is read."""
        self.has_media = self.has_media or bool(value)
        for holder, name, text in _strings(container, key, value, place.depth):
            self._count(1)
            if not _MEDIA_VALUE.fullmatch(text):
                self._add(Leaf(holder, name, text, Origin.USER), place)

    def conversations(self) -> list[str]:
        """Texts as a template may print them in one run: all pieces of a message one after the
        other, and its pieces of one kind with those of other kinds left out."""
        runs: dict[tuple[str, str], list[str]] = {}
        for leaf in self.leaves:
            part = leaf.part_of if "." in leaf.part_of else ""
            if leaf.origin.trusted or leaf.token_ids or not part:
                continue
            if not part.startswith(_TURNS):
                part = part.partition(".")[0]
            runs.setdefault((part, ""), []).append(leaf.text)
            runs.setdefault((part, str(leaf.key)), []).append(leaf.text)
        return ["".join(texts) for texts in runs.values() if len(texts) > 1]


def prompts_in(data: Mapping[str, Any]) -> int:
    """How many prompts a body holds that have nothing to do with each other."""
    for name in ("prompt", "messages", "input"):
        value = data.get(name)
        # A list of messages or of token ids is one prompt; one of texts or of lists is many.
        if isinstance(value, list) and value and isinstance(value[0], str | list):
            return len(value)
    return 1


def _join_text_parts(parts: list[Any]) -> None:
    """Make one part of neighbouring text parts, in place.

    Chat templates print them with nothing between, so that a control token (or a sentence) cut
    over two parts would be whole again only after the guard has read the halves.
    """
    joined: list[Any] = []
    for key, run in groupby(parts, _text_key):
        first, *others = run
        joined.append(first)
        if key is None:
            joined.extend(others)
        elif others:
            first[key[1]] = "\n".join(part[key[1]] for part in (first, *others))
    parts[:] = joined


def _text_key(part: Any) -> tuple[str, str] | None:
    """(type, name of the text field) of a text part, None for anything else."""
    kind = part.get("type") if isinstance(part, dict) else None
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if kind is None or field is None or not isinstance(part.get(field), str):
        return None
    return kind, field


def _strings(container: Any, key: Any, value: Any, depth: int) -> Iterator[tuple[Any, Any, str]]:
    if depth > MAX_DEPTH:
        raise MalformedRequest("the body is nested too deeply")
    if isinstance(value, str):
        yield container, key, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(value, index, item, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not _PLAIN_NAME.fullmatch(name):
                yield None, None, name
            yield from _strings(value, name, item, depth + 1)


def _words(names: list[str]) -> str:
    """Property names as the words they spell, for the encoder."""
    return " ".join(names).replace("_", " ").replace("-", " ")


def _json_object(text: str) -> dict[str, Any] | list[Any] | None:
    """The arguments of a tool call are JSON in a string; what is escaped in there is read too."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, (dict, list)) else None


def parse_body(raw: bytes) -> dict[str, Any]:
    """:raises MalformedRequest: not a JSON object."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        raise MalformedRequest("the body is not valid JSON") from None
    if not isinstance(data, dict):
        raise MalformedRequest("the body must be a JSON object")
    return data
