"""The approvers' routes: tool calls and answers that wait for a person. Scope `approve` only.

    GET  /vauban/approvals?state=pending&limit=100    {"approvals": [...]}, newest first
    GET  /vauban/approvals/ID          of an answer that is held also "answer", its texts
    POST /vauban/approvals/ID/approve  {"reason"}
    POST /vauban/approvals/ID/deny     {"reason"}      also takes an approval back
    GET  /vauban/receipt-key                           {"key": JWK} that receipts are verified with

Names and arguments are ASCII: what is invisible or turns the direction of text shows as an escape.
The credential that asked for a call can't approve it, and who has none can't approve anything.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from vauban.access.approval import CALLS, Approval, Approvals, State
from vauban.errors import (
    ApprovalRefused,
    ApprovalsLost,
    MalformedRequest,
    NotFound,
    StateUnavailable,
)
from vauban.hosts.vllm.answers import Answer, json_body
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.held import unpack
from vauban.hosts.vllm.query import read_limit, read_query
from vauban.hosts.vllm.tool_gate import escaped
from vauban.hosts.vllm.users import GivenReason, parsed
from vauban.treatment import moment
from vauban.types import Principal, PrincipalKind

MAX_LISTED: Final = 500
_PATH: Final = re.compile(r"/vauban/approvals(?:/(?P<id>[^/]+)(?:/(?P<act>approve|deny))?)?")


class _Decision(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    reason: GivenReason


class ApprovalsApi:
    """Answers for the approvals of one front."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def answer(
        self, _method: str, path: str, query: bytes, raw: bytes, operator: Principal
    ) -> Answer:
        """:raises RequestError: not what the route takes, no such approval, it may not be decided
        so, or the store is lost.

        :param _method: told by the path.
        :param operator: the caller.
        """
        gate = self._front.tool_gate
        if path == "/vauban/receipt-key":
            return Answer(200, json_body({"key": gate.receipts.public_key()}))
        matched = _PATH.fullmatch(path)
        if matched is None:
            raise NotFound("there is no approval with this id")
        approval_id, act = matched["id"], matched["act"]
        try:
            if approval_id is None:
                wanted, limit = _listing(query)
                found = await asyncio.to_thread(gate.approvals.all)
                rows = [_shown(a) for a in reversed(found) if wanted in (None, a.state)]
                return Answer(200, json_body({"approvals": rows[:limit]}))
            if act is None:
                return await asyncio.to_thread(_in_full, gate.approvals, approval_id)
            given = parsed(_Decision, raw)
            if operator.kind is PrincipalKind.ANONYMOUS:
                raise ApprovalRefused("an approval takes a credential")
            return _one(
                await asyncio.to_thread(
                    gate.approvals.decide, approval_id, approve=act == "approve", by=operator.id,
                    reason=given.reason,
                )
            )  # fmt: skip
        except StateUnavailable:
            raise ApprovalsLost("the store does not answer; look whether it was done") from None


def _listing(query: bytes) -> tuple[State | None, int]:
    """The state and the number that are asked for."""
    asked = read_query(query, "state", "limit")
    state = asked["state"]
    if state and state not in {known.value for known in State}:
        raise MalformedRequest("there is no such state", param="state")
    return State(state) if state else None, read_limit(asked["limit"], MAX_LISTED)


def _in_full(approvals: Approvals, approval_id: str) -> Answer:
    found = approvals.get(approval_id)
    shown = _shown(found)
    if found.form != CALLS:
        with suppress(NotFound):  # it has been released
            shown["answer"] = unpack(approvals.answer_of(found)).texts
    return Answer(200, json_body(shown))


def _one(approval: Approval) -> Answer:
    return Answer(200, json.dumps(_shown(approval)).encode())


def _shown(approval: Approval) -> dict[str, Any]:
    return {
        "id": approval.id,
        "state": approval.state.value,
        "caller": approval.tenant,
        "created": moment(approval.created),
        "expires": moment(approval.expires),
        "calls": [
            {
                "tool": escaped(call.tool),
                "arguments": call.arguments,
                "why": call.why,
                "schema_sha256": call.schema,
            }
            for call in approval.calls
        ],
        "by": approval.by,
        "reason": approval.reason,
        "decided": moment(approval.decided) if approval.decided else None,
        "policy": approval.policy,
    }
