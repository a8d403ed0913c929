"""What a request says of tools: which it declares, and what it answers to an approval."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from typing import Any, Final

from vauban.errors import MalformedRequest
from vauban.protocol.shapes import Shape

APPROVAL_REQUEST: Final = "mcp_approval_request"
APPROVAL_RESPONSE: Final = "mcp_approval_response"
MAX_REASON_CHARS: Final = 500
_APPROVAL_ITEMS: Final = (APPROVAL_REQUEST, APPROVAL_RESPONSE)
# What the items of one approval are told apart by stands behind its id.
_ITEM_ID: Final = re.compile(r"(apr_[0-9A-Za-z_-]{24})(?:-\d{1,3})?")


def declared_tools(data: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each tool that a request declares, by the name that the model calls it.

    :raises MalformedRequest: a tool is nested too deeply.
    """
    try:
        return {name: _digest(tool) for name, tool in _tools(data.get("tools"), "")}
    except RecursionError:
        raise MalformedRequest("the body is nested too deeply", param="tools") from None


def _tools(tools: Any, namespace: str) -> Iterator[tuple[str, Any]]:
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue
        inner = tool.get("function")
        name = inner.get("name") if isinstance(inner, dict) else tool.get("name")
        if not isinstance(name, str):
            continue
        if tool.get("type") == "namespace":
            yield from _tools(tool.get("tools"), f"{name}__")
        else:
            yield namespace + name, tool


def _digest(tool: Any) -> str:
    return hashlib.sha256(json.dumps(tool, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ApprovalAnswer:
    """What the client of a Responses request says to an approval."""

    approval_id: str
    approve: bool
    reason: str


def take_approval_items(data: dict[str, Any], shape: Shape) -> ApprovalAnswer | None:
    """Take the approval items out of a Responses request, in place; vLLM knows none.

    Gives what the last of them says when nothing of the conversation follows it: an older one
    has had its effect, and clients send their whole history again. The calls of a turn go out
    together, so a no to one of its items is a no to all.

    :raises MalformedRequest: an answer that names no approval, or answers to several at once.
    """
    items = data.get("input")
    if shape is not Shape.RESPONSES or not isinstance(items, list):
        return None
    data["input"] = [item for item in items if _kind(item) not in _APPROVAL_ITEMS]
    if not items or _kind(items[-1]) not in _APPROVAL_ITEMS:
        return None
    answers: list[ApprovalAnswer] = []  # the last first
    for item in takewhile(lambda item: _kind(item) in _APPROVAL_ITEMS, reversed(items)):
        if _kind(item) == APPROVAL_RESPONSE:
            answers.append(_answer(item))
    if not answers:
        return None
    same = [a for a in answers if a.approval_id == answers[0].approval_id]
    together = takewhile(
        lambda item: _kind(item) == APPROVAL_RESPONSE,
        dropwhile(lambda item: _kind(item) == APPROVAL_REQUEST, reversed(items)),
    )
    if any(_answer(item).approval_id != answers[0].approval_id for item in together):
        raise MalformedRequest("answer one approval per request", param="input")
    return next((answer for answer in same if not answer.approve), answers[0])


def approval_of(item_id: str) -> str:
    """The approval's id in the id of one of its items; any other text as it is."""
    found = _ITEM_ID.fullmatch(item_id)
    return found[1] if found else item_id


def _answer(item: Mapping[str, Any]) -> ApprovalAnswer:
    approval_id, approve = item.get("approval_request_id"), item.get("approve")
    if not isinstance(approval_id, str) or not isinstance(approve, bool):
        raise MalformedRequest(
            f"{APPROVAL_RESPONSE} needs approval_request_id and approve", param="input"
        )
    reason = item.get("reason")
    return ApprovalAnswer(
        approval_of(approval_id),
        approve,
        reason[:MAX_REASON_CHARS] if isinstance(reason, str) else "",
    )


def _kind(item: Any) -> Any:
    return item.get("type") if isinstance(item, dict) else None
