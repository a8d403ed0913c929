"""What the server derives for a caller and puts into his requests: a salt for the prefix cache, so
that its timing tells nobody what others have asked, and a canary behind the operator's text, so
that an answer that repeats the text is recognised.

Covers: every shape that vLLM takes a salt on. Does not cover: a canary for plain completions and
token ids, which have no system text.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from vauban.mark import Sealer
from vauban.policy_output import OutputPolicy
from vauban.protocol.shapes import Shape
from vauban.types import Principal, Segment

_CANARY_BYTES: Final = 10
_SALT_BYTES: Final = 24
# As `Owners.canary` and `place_canary` write it.
_CANARY_LINE: Final = re.compile(r"\n\[ref [a-z2-7]{16}\]\Z")
_SYSTEM_ROLES: Final = ("system", "developer")
_SALTED: Final = frozenset(
    {Shape.CHAT, Shape.COMPLETION, Shape.RESPONSES, Shape.ANTHROPIC, Shape.TOKENS}
)


class Owners:
    """Derives both from the server's secret and who calls."""

    def __init__(self, sealer: Sealer, policy: OutputPolicy) -> None:
        self._sealer = sealer
        self._policy = policy

    def salt(self, data: dict[str, Any], shape: Shape, caller: Principal) -> None:
        """Set the salt of a body. A client's own value divides what is his further, and is never
        used by itself."""
        if self._policy.cache_salt == "off" or shape not in _SALTED:
            return
        own = data.get("cache_salt")
        if own is not None and not isinstance(own, str):
            return  # vLLM refuses it
        grouped = self._policy.cache_salt == "group" and caller.group
        owner = ["group", caller.group] if grouped else [caller.kind.value, caller.id]
        tag = self._tag(b"cache", [*owner, own or ""])
        data["cache_salt"] = base64.urlsafe_b64encode(tag[:_SALT_BYTES]).decode()

    def canary(self, caller: Principal, request_id: str) -> str | None:
        """The canary for a request of this caller: 16 letters and digits."""
        if self._policy.place_canary == "off" or self._policy.canary == "off":
            return None
        once = request_id if self._policy.place_canary == "request" else ""
        tag = self._tag(b"canary", [caller.kind.value, caller.id, once])
        return base64.b32encode(tag[:_CANARY_BYTES]).decode().lower()

    def place(
        self, data: dict[str, Any], shape: Shape, caller: Principal, request_id: str
    ) -> tuple[str, ...]:
        """Put the canary into a body that has the operator's text; what the answer must not say."""
        found = self.canary(caller, request_id)
        if found is None:
            return ()
        place_canary(data, shape, found)
        return (found,)

    def _tag(self, purpose: bytes, values: list[str]) -> bytes:
        return self._sealer.tag(purpose, json.dumps(values).encode())


def operator_texts(segments: Iterable[Segment], instruction: str | None) -> list[str]:
    """What the operator has said in a request, which the answer must not repeat at length.

    :param instruction: the policy's `sandwich.instruction`.
    """
    return [s.text for s in segments if s.origin.trusted] + ([instruction] if instruction else [])


def without_canary(instructions: Any) -> Any:
    """The `instructions` of a Responses request as its caller wrote them; the answer repeats
    them."""
    if isinstance(instructions, str):
        return _CANARY_LINE.sub("", instructions)
    return instructions


def place_canary(data: dict[str, Any], shape: Shape, canary: str) -> None:
    """Put a canary at the end of the first system text of a body; none where there is none."""
    line = f"\n[ref {canary}]"
    if shape is Shape.ANTHROPIC:
        data["system"] = _appended(data.get("system"), line)
    elif shape is Shape.RESPONSES and data.get("instructions"):
        data["instructions"] = _appended(data["instructions"], line)
    elif shape in (Shape.CHAT, Shape.RESPONSES):
        turns = data.get("messages" if shape is Shape.CHAT else "input")
        conversations = turns if turns and isinstance(turns, list) else []
        if conversations and not isinstance(conversations[0], list):
            conversations = [conversations]
        for messages in conversations:
            _mark_first(messages, line)


def _mark_first(messages: list[Any], line: str) -> None:
    for message in messages:
        if isinstance(message, dict) and message.get("role") in _SYSTEM_ROLES:
            message["content"] = _appended(message.get("content"), line)
            return


def _appended(content: Any, line: str) -> Any:
    if isinstance(content, str) and content:
        return content + line
    if isinstance(content, list) and content:
        kind = "input_text" if _kind(content[-1]) == "input_text" else "text"
        return [*content, {"type": kind, "text": line}]
    return content


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None
