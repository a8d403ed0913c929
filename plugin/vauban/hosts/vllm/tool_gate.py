"""Judges the tool calls in answers: lets them pass, holds them for a person, or takes them out.
Answers that the policy holds are kept and released here as well.

`ToolGate` is one server's: policy, store, receipts. A `Turn` is one request's; what the protocols'
editors (`withheld*.py`) ask it to judge are the calls of one turn of the model. They leave
together or not at all: half of a turn is not what the model meant.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final

from vauban.access.approval import CALLS, Approval, Approvals, Call, State
from vauban.access.approval import ID as APPROVAL_ID
from vauban.access.arguments import canonical, texts_in
from vauban.access.receipt import Receipts
from vauban.access.tool_rules import Ruling, ToolDecision, ToolRules, Why
from vauban.errors import ApprovalsLost, NotFound, StateUnavailable
from vauban.guard import hold_calls, rule_on_call
from vauban.policy_tools import ToolsPolicy
from vauban.protocol.calls import approval_of
from vauban.treatment import moment
from vauban.types import Mode

HEADER: Final = "x-approval-id"
ANSWER: Final = "answer"
"""What a held answer is called where tools are named."""
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DENIED: Final = {
    Why.RULE: "the server's policy does not allow it",
    Why.UNLISTED: "the server's policy does not know this tool",
    Why.DESTRUCTIVE: "the server's policy does not allow tools that destroy, send or spend",
    Why.TAINTED: "the model had read texts of tools or documents",
    Why.NOT_JSON: "its arguments are not one plain JSON object",
    Why.TOO_LARGE: "it is too large to be judged",
    Why.SCHEMA: "its arguments do not match the server's schema",
    Why.RECIPIENT: "a recipient is outside of what the server's policy allows",
    Why.AMOUNT: "an amount is outside of what the server's policy allows",
    Why.PATH: "a path is outside of what the server's policy allows",
    Why.LEAK: "together, its arguments say what must not leave",
    Why.NAME: "its name is too long",
    Why.READ_LATER: "it needs a person's approval, which a response that is read later can't get",
    Why.TOO_MANY: "too much waits for approval already",
    Why.FAILED: "it could not be judged or kept now",
    Why.DEFAULT: "the server's policy does not allow it",
}


@dataclass(frozen=True, slots=True)
class Said:
    """A call as the model made it; `arguments` as text."""

    id: str
    name: str
    arguments: str
    namespace: str = ""
    kind: str = "function"

    @property
    def tool(self) -> str:
        return f"{self.namespace}__{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of the calls of a turn.

    `approval` is what the client is told besides, or None where they pass as they are. `calls`:
    what waits or was released, canonical; empty where they are denied. `text` says it in words.
    `answer`: one that was kept and is released.
    """

    decision: ToolDecision
    text: str = ""
    approval: dict[str, Any] | None = None
    calls: tuple[Call, ...] = ()
    answer: bytes = b""

    @property
    def passes(self) -> bool:
        return self.decision is ToolDecision.ALLOW


@dataclass(slots=True)
class Turn:
    """What the gate has to know of a request. `tainted`: its texts come from tools or documents,
    too. `may_ask`: the client is there to come back with an approval. `leaks`: whether texts, put
    together, say what must not leave."""

    principal: str
    request_id: str
    route: str
    tools: Mapping[str, str] = field(default_factory=dict)
    tainted: bool = False
    may_ask: bool = True
    leaks: Callable[[Sequence[str]], bool] = lambda _: False


class ToolGate:
    """
    :param record: called for each call that does not pass freely, with fields for the audit log.
    :param count: called for each call with decision and why.
    :param approvers: whether another credential can exist on this server at all.
    :param holds_answers: whether the policy has answers kept.
    """

    def __init__(
        self, policy: ToolsPolicy, rules: ToolRules, approvals: Approvals, receipts: Receipts, *,
        record: Callable[..., None] = lambda **_: None,
        count: Callable[[str, str], None] = lambda *_: None, approvers: bool = True,
        holds_answers: bool = False,
    ) -> None:  # fmt: skip
        self.approvals = approvals
        self.receipts = receipts
        self.watches = policy.mode is not Mode.OFF
        self.enforces = policy.mode is Mode.ENFORCE
        self.holds_answers = holds_answers
        self._digest = policy.digest
        self._rules = rules
        self._record = record
        self._count = count
        self._approvers = approvers

    async def judge(self, turn: Turn, calls: Sequence[Said]) -> Outcome:
        """The calls of one turn of the model. The strictest ruling counts for all of them."""
        rulings = [
            rule_on_call(self._rules, call.tool, call.arguments, tainted=turn.tainted)
            for call in calls
        ]
        if any(map(turn.leaks, _texts_of(calls))):
            rulings = [Ruling(ToolDecision.DENY, Why.LEAK) for _ in calls]
        worst = max(rulings, key=lambda ruling: ruling.decision)
        held: Approval | Why | None = None
        if worst.decision is ToolDecision.ASK and self.enforces:
            held = await self._hold(turn, calls, rulings)
            if isinstance(held, Why):
                worst = Ruling(ToolDecision.DENY, held)
                rulings = [worst for _ in calls]
        self._told(turn, calls, rulings, worst)
        if worst.decision is ToolDecision.ALLOW or not self.enforces:
            return Outcome(ToolDecision.ALLOW)
        if isinstance(held, Approval):
            return self._waits(held)
        return self._denied(calls, worst.why)

    async def hold_answer(
        self, turn: Turn, form: str, answer: bytes, found: Mapping[str, int]
    ) -> Outcome:
        """Keep an answer until somebody releases it.

        :param answer: empty: there is too much of it.
        :param found: how often which detectors have found something.
        """
        told = Call("", ANSWER, canonical({"findings": dict(found)}), "", min(found), kind=ANSWER)
        held: Approval | Why = Why.TOO_LARGE
        if answer:
            held = await asyncio.to_thread(
                hold_calls, self.approvals, turn.principal, [told], form=form, answer=answer
            )
        if isinstance(held, Approval):
            return self._waits(held)
        self._audit(turn, [ANSWER], ToolDecision.DENY, held)
        text = f"[The rest of this answer was held back: {_DENIED[held]}.]"
        return Outcome(ToolDecision.DENY, text, _refused(held))

    async def settle(
        self, turn: Turn, approval_id: str, forms: Collection[str] = (CALLS,)
    ) -> Outcome:
        """What has become of an approval; its calls, or its answer, if they are released now.

        :param forms: what the request can be answered with.

        :raises RequestError: none of this caller's, used already, or void.
        """
        try:
            found = await asyncio.to_thread(
                self.approvals.release, _plain_id(approval_id), turn.principal, turn.tools, forms
            )
            if found.state is State.RELEASED and found.form != CALLS:
                answer = await asyncio.to_thread(self.approvals.take_answer, found)
                return Outcome(ToolDecision.ALLOW, answer=answer)
        except StateUnavailable:
            raise ApprovalsLost("approvals can't be looked up now; try again") from None
        if found.state is State.PENDING:
            return self._waits(found)
        if found.state is not State.RELEASED:
            return self._ended(found)
        told = {
            **_told_of(found), "approved_by": found.by,
            "receipts": self.receipts.sign(found, time.time()),
        }  # fmt: skip
        return Outcome(ToolDecision.ALLOW, "", told, found.calls)

    async def withdraw(self, turn: Turn, approval_id: str) -> str:
        """The caller says no to its own call; what the model is told of it.

        :raises RequestError: none of this caller's.
        """
        try:
            found = await asyncio.to_thread(
                self.approvals.withdraw, _plain_id(approval_id), turn.principal
            )
        except StateUnavailable:
            raise ApprovalsLost("approvals can't be changed now; try again") from None
        if found.state is State.RELEASED:
            return f"{_subject(found)} has been approved already."
        return f"{_subject(found)} was not approved."

    # -- what clients are told -------------------------------------------------------------------

    def _waits(self, held: Approval) -> Outcome:
        text = (
            f"[{_subject(held)} was held back: it needs a person's approval. Approval id:"
            f" {held.id}, open until {moment(held.expires)}."
        )
        if self._approvers:
            text += (
                " Once somebody else has approved it, send the same request again with the header"
                f" X-Approval-Id: {held.id}]"
            )
        else:
            text += (
                " This server runs without keys, so nobody can: its operator has to make keys, or"
                " a rule for this tool.]"
            )
        calls = held.calls if held.form == CALLS else ()
        return Outcome(ToolDecision.ASK, text, _told_of(held), calls)

    def _ended(self, found: Approval) -> Outcome:
        if found.state is State.EXPIRED:
            text = f"[{_subject(found)} was denied: nobody has approved it in time.]"
        else:
            # A text of the approver's, for the model and the user.
            reason = f" Reason: {found.reason}" if found.reason else ""
            text = f"[{_subject(found)} was denied.{reason}]"
        return Outcome(ToolDecision.DENY, text, _told_of(found))

    def _denied(self, calls: Sequence[Said], why: Why) -> Outcome:
        text = f"[The call of {_names(call.tool for call in calls)} was held back: {_DENIED[why]}.]"
        return Outcome(ToolDecision.DENY, text, _refused(why))

    # -- keeping and telling ---------------------------------------------------------------------

    async def _hold(
        self, turn: Turn, calls: Sequence[Said], rulings: Sequence[Ruling]
    ) -> Approval | Why:
        if not turn.may_ask:
            return Why.READ_LATER
        kept = []
        for call, ruling in zip(calls, rulings, strict=True):
            # One that would have passed by itself is shown and bound like the others.
            read = self._rules.read(call.arguments)
            if isinstance(read, Why):
                return read
            kept.append(
                Call(call.id, call.name, canonical(read), turn.tools.get(call.tool, ""),
                     ruling.why.value, call.namespace, call.kind)
            )  # fmt: skip
        return await asyncio.to_thread(hold_calls, self.approvals, turn.principal, kept)

    def _told(
        self, turn: Turn, calls: Sequence[Said], rulings: Sequence[Ruling], worst: Ruling
    ) -> None:
        for ruling in rulings:
            self._count(ruling.decision.name.lower(), ruling.why.value)
        if worst.decision is not ToolDecision.ALLOW:
            self._audit(turn, [call.tool for call in calls], worst.decision, worst.why)

    def _audit(self, turn: Turn, tools: Sequence[str], decision: ToolDecision, why: Why) -> None:
        self._record(
            request_id=turn.request_id,
            principal=turn.principal,
            route=turn.route,
            decision=decision.name.lower(),
            reason=why.value,
            enforced=self.enforces,
            tainted=turn.tainted,
            tools=[safe_name(tool) for tool in tools],
            policy=self._digest,
        )


def _texts_of(calls: Sequence[Said]) -> Iterator[list[str]]:
    """What somebody could put together of the calls of a turn: names, and values without and with
    numbers."""
    for texts in zip(*(texts_in(call.arguments) for call in calls), strict=True):
        yield [*chain.from_iterable(texts)]


def safe_name(name: str) -> str:
    """A tool's name where it stands in a text or a log. It is a model's or a client's text."""
    return name if _PLAIN_NAME.fullmatch(name) else "(another name)"


def _plain_id(approval_id: str) -> str:
    """:raises NotFound: it can't be one."""
    plain = approval_of(approval_id)
    if not APPROVAL_ID.fullmatch(plain):
        raise NotFound("there is no approval with this id")
    return plain


def escaped(name: str) -> str:
    return json.dumps(name)[1:-1]


def _names(names: Any) -> str:
    return ", ".join(dict.fromkeys(safe_name(name) for name in names))


def _subject(approval: Approval) -> str:
    if approval.form != CALLS:
        return "This answer"
    return f"The call of {_names(call.tool for call in approval.calls)}"


def _refused(why: Why) -> dict[str, Any]:
    return {"id": None, "state": State.DENIED.value, "reason": why.value}


def _told_of(approval: Approval) -> dict[str, Any]:
    """An approval as its caller sees it. Everything in it is ASCII."""
    if approval.form != CALLS:  # what was found in an answer is not for its caller
        approval = replace(approval, calls=())
    return {
        "id": approval.id,
        "state": approval.state.value,
        "expires_at": moment(approval.expires),
        "calls": [
            {"tool": escaped(call.tool), "arguments": call.arguments, "why": call.why}
            for call in approval.calls
        ],
    }
