"""What became of one request, read from what the server answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CONTENT_FILTER = "content_filter"

# The stage of the guard behind each reason that it gives. Another server's content filter, or one
# that gives no reason, is "unknown".
_STAGE_OF_REASON = {
    "prompt_injection": "classifier",
    "unread_text": "normalise",
    "screen_failed": "screening_failed",
    "screen_timeout": "screening_failed",
    "screen_overloaded": "screening_failed",
}
# Refusals of the guard before it screens that an attack can run into. A key without scope, or a
# route that is closed, is the tester's own mistake and an error.
_STAGE_OF_CODE = {"request_too_large": "limits", "malformed_request": "request_check"}
_UNAVAILABLE = frozenset({"dead_target", "rate_limited", "timeout", "server_error"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """`detail` is the stage that blocked, the kind of error, or empty."""

    kind: Literal["answered", "blocked", "error"]
    detail: str = ""

    @classmethod
    def error(cls, kind: str) -> Outcome:
        return cls("error", kind)

    @property
    def unavailable(self) -> bool:
        """Whether the target gave no answer at all, as opposed to one that is no use."""
        return self.kind == "error" and self.detail in _UNAVAILABLE


def classify(status: int, body: Any, headers: Mapping[str, str]) -> Outcome:
    """Read an answer.

    :param body: the parsed JSON, None where it was none.
    """
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    reason = error.get("reason") if isinstance(error, dict) else None
    if not isinstance(reason, str):
        reason = headers.get("x-vauban-reason", "")
    if code == CONTENT_FILTER or (status < 300 and _filtered(body)):
        return Outcome("blocked", _STAGE_OF_REASON.get(reason, "unknown"))
    if status < 300:
        return Outcome("answered") if isinstance(body, dict) else Outcome.error("server_error")
    if isinstance(code, str) and code in _STAGE_OF_CODE:
        return Outcome("blocked", _STAGE_OF_CODE[code])
    if status == 429:
        return Outcome.error("rate_limited")
    return Outcome.error("server_error" if status >= 500 else "rejected")


def _filtered(body: Any) -> bool:
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list):
        return False
    return any(isinstance(c, dict) and c.get("finish_reason") == CONTENT_FILTER for c in choices)


def digest_of_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """A name for a conversation that does not tell its text: roles and texts, hashed."""
    plain = [[str(m.get("role", "")), _text(m.get("content"))] for m in messages]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:32]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict)]
        return "\n".join(p for p in parts if isinstance(p, str))
    return ""
