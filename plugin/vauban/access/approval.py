"""What waits for a person: held, decided by somebody else than the caller, released once.

It is the tool calls of one turn of the model, or an answer that the policy holds. A record is bound
by HMAC-SHA256 over a versioned JSON array of everything in it (tenant, tools, canonical arguments,
hashes of the tools' schemas, digest of the policy, expiry, hash of the answer, and what was decided
by whom), so one that was written or changed past this module opens no door. Each step is one
atomic change in the store. A release takes the record before anything is given out: whoever dies in
between has lost the call, and nobody gets it twice. What nobody decides in time is denied.

Covers: forged and altered records, approval by the caller, replay, races of many servers, policy
or tools that changed in between. Does not cover: somebody who writes to the store and puts a
record's own earlier state back.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from vauban.access.answer_records import (
    MAX_ANSWER_BYTES,
    drop_answer,
    read_answer,
    read_record,
    write_answer,
)
from vauban.errors import (
    ApprovalRefused,
    ConfigError,
    NotFound,
    StateUnavailable,
    TooManyApprovals,
)
from vauban.policy_tools import ToolsPolicy
from vauban.state.store import MAX_RECORD_BYTES, Change, Store

VERSION: Final = 1
ID: Final = re.compile(r"apr_[0-9A-Za-z_-]{24}")
MAX_APPROVALS: Final = 500
"""That many may wait in one store. Ended ones go when whoever asked had time to hear of it."""
CALLS: Final = ""
"""The form of what is no answer."""
_ID_BYTES: Final = 18
_INDEX: Final = "approvals"
_MISSING: Final = "there is no approval with this id"


class State(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call. `arguments`: canonical JSON. `schema`: SHA-256 of the tool as the request
    declared it, or empty. `namespace`, `kind`: as the Responses API tells calls apart."""

    id: str
    name: str
    arguments: str
    schema: str
    why: str
    namespace: str = ""
    kind: str = "function"

    @property
    def tool(self) -> str:
        return f"{self.namespace}__{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Approval:
    """The calls of one turn of the model, and what became of them. Times in seconds since the
    epoch. `tenant`: principal id of the caller. `by`: of who decided. For an answer, `form` is that
    of the request, `answer` the SHA-256 of what is kept of it, and the one call tells of it."""

    id: str
    tenant: str
    calls: tuple[Call, ...]
    policy: str
    created: float
    expires: float
    state: State = State.PENDING
    by: str = ""
    reason: str = ""
    decided: float = 0.0
    form: str = CALLS
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to an approval, for the audit log."""

    action: str
    approval: Approval
    by: str = ""


class Approvals:
    """
    :param secret: the same for all servers that share the store.
    :param output_digest: of the policy that holds answers.
    :param on_step: called after each step, from any thread.
    :param clock: seconds since the epoch. Keep the clocks of several servers together.
    """

    def __init__(
        self, store: Store, secret: bytes, policy: ToolsPolicy, *, output_digest: str = "",
        on_step: Callable[[Step], None] = lambda _: None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store = store
        self._key = hmac.digest(secret, b"vauban approval", "sha256")
        self._policy = policy
        self._digest = policy.digest
        self._output_digest = output_digest
        self._on_step = on_step
        self._clock = clock
        self._is_open = False

    def open(self) -> None:
        """:raises ConfigError: the store will never work. :raises StateUnavailable:"""
        self._store.open()
        self._is_open = True

    def close(self) -> None:
        self._is_open = False
        self._store.close()

    # -- the caller's side -----------------------------------------------------------------------

    def hold(
        self, tenant: str, calls: Sequence[Call], *, form: str = CALLS, answer: bytes = b""
    ) -> Approval:
        """Keep the calls of a turn, or an answer, until somebody decides.

        :raises TooManyApprovals: the caller has asked too often, or too much is kept.
        :raises StateUnavailable: nothing was kept.
        """
        now = self._clock()
        drawn = f"apr_{secrets.token_urlsafe(_ID_BYTES)}"
        expires = now + self._policy.approval_s
        approval = Approval(drawn, tenant, tuple(calls), self._digest_for(form), now, expires)
        if form != CALLS:
            approval = replace(approval, form=form, answer=hashlib.sha256(answer).hexdigest())
        sealed = self._seal(approval)
        if len(sealed) > MAX_RECORD_BYTES or len(answer) > MAX_ANSWER_BYTES:
            raise TooManyApprovals("this is too large to be kept")
        self._enter(approval, now)
        write_answer(self._update, drawn, answer)
        self._update(_key(drawn), lambda _: sealed)
        self._on_step(Step("held", approval))
        return approval

    def withdraw(self, approval_id: str, tenant: str) -> Approval:
        """The caller itself says no. What has ended stays as it is.

        :raises NotFound: :raises StateUnavailable:
        """

        def rule(found: Approval) -> Approval:
            if found.tenant != tenant:
                raise NotFound(_MISSING)
            if found.state not in (State.PENDING, State.APPROVED):
                return found
            return replace(found, state=State.DENIED, by=tenant, decided=self._clock())

        return self._change(approval_id, rule, "withdrawn", tenant)

    def release(
        self, approval_id: str, tenant: str, tools: Mapping[str, str],
        forms: Collection[str] = (CALLS,),
    ) -> Approval:  # fmt: skip
        """Take it out, once. The state says what came of it: only `RELEASED` gives it.

        :param tools: hashes of the schemas that the request declares now, by name.
        :param forms: what the request can be answered with.
        :raises NotFound: no such approval of this caller.
        :raises ApprovalRefused: used already, the request is another, or policy or tools have
            changed since.
        :raises StateUnavailable: nothing may be given out.
        """

        def rule(found: Approval) -> Approval:
            if found.tenant != tenant:
                raise NotFound(_MISSING)
            if found.form not in forms:
                raise ApprovalRefused("it was given for another kind of request: send the same")
            if found.state is State.RELEASED:
                raise ApprovalRefused("this approval has been used")
            if found.state is not State.APPROVED:
                return found
            if found.policy != self._digest_for(found.form):
                raise ApprovalRefused("the server's policy has changed since: ask again")
            if found.form == CALLS and any(
                tools.get(call.tool, "") != call.schema for call in found.calls
            ):
                raise ApprovalRefused("the tools of this request are not those it was given for")
            return replace(found, state=State.RELEASED)

        try:
            return self._change(approval_id, rule, "released", tenant)
        except ApprovalRefused:
            self._on_step(Step("refused", self.get(approval_id), tenant))
            raise

    # -- the approver's side ---------------------------------------------------------------------

    def decide(self, approval_id: str, *, approve: bool, by: str, reason: str) -> Approval:
        """
        :param by: principal id of who decides.
        :raises NotFound: :raises StateUnavailable:
        :raises ApprovalRefused: the caller's own credential approves, or it has ended.
        """

        def rule(found: Approval) -> Approval:
            open_states = (State.PENDING,) if approve else (State.PENDING, State.APPROVED)
            if found.state not in open_states:
                raise ApprovalRefused(f"it is {found.state.value} already")
            if approve and found.tenant == by:
                raise ApprovalRefused("who asked can't approve: it takes another credential")
            if approve and found.policy != self._digest_for(found.form):
                raise ApprovalRefused("the server's policy has changed since")
            state = State.APPROVED if approve else State.DENIED
            return replace(found, state=state, by=by, reason=reason, decided=self._clock())

        try:
            return self._change(approval_id, rule, "approved" if approve else "denied", by)
        except ApprovalRefused:
            self._on_step(Step("refused", self.get(approval_id), by))
            raise

    def get(self, approval_id: str) -> Approval:
        """:raises NotFound: :raises StateUnavailable:"""
        return self._change(approval_id, lambda found: found, "", "")

    def answer_of(self, approval: Approval) -> bytes:
        """What is kept of an answer, as it was given to `hold`.

        :raises NotFound: it is gone, or not what was kept. :raises StateUnavailable:
        """
        kept = read_answer(self._update, approval.id)
        if hashlib.sha256(kept).hexdigest() != approval.answer:
            raise NotFound(_MISSING)
        return kept

    def take_answer(self, released: Approval) -> bytes:
        """The same, for the last time. :raises NotFound: :raises StateUnavailable:"""
        kept = self.answer_of(released)
        drop_answer(self._update, released.id)
        return kept

    def all(self) -> list[Approval]:
        """What is kept, oldest first. :raises StateUnavailable:"""
        self._purge(self._clock())
        found = []
        for approval_id in self._read_index():
            try:
                found.append(self.get(approval_id))
            except NotFound:
                continue
        return sorted(found, key=lambda approval: approval.created)

    # -- records ---------------------------------------------------------------------------------

    def _digest_for(self, form: str) -> str:
        return self._digest if form == CALLS else self._output_digest

    def _change(
        self, approval_id: str, rule: Callable[[Approval], Approval], action: str, by: str
    ) -> Approval:
        if not ID.fullmatch(approval_id):
            raise NotFound(_MISSING)
        before = after = None

        def change(old: bytes | None) -> bytes | None:
            nonlocal before, after
            before = self._open(approval_id, old)
            after = rule(before)
            return old if after is before else self._seal(after)

        self._update(_key(approval_id), change)
        if before is None or after is None:
            raise NotFound(_MISSING)
        if after is not before:
            self._on_step(Step(action, after, by))
        return after

    def _seal(self, approval: Approval) -> bytes:
        fields = [*astuple(approval)]
        return json.dumps([VERSION, fields, self._mac(approval.id, fields)]).encode()

    def _mac(self, approval_id: str, fields: Any) -> str:
        bound = json.dumps(["vauban approval", VERSION, approval_id, fields]).encode()
        return hmac.new(self._key, bound, hashlib.sha256).hexdigest()

    def _open(self, approval_id: str, sealed: bytes | None) -> Approval:
        """:raises NotFound: there is none, or it is not what was written here."""
        if sealed is None:
            raise NotFound(_MISSING)
        try:
            version, fields, mac = json.loads(sealed)
            genuine = hmac.compare_digest(mac, self._mac(approval_id, fields))
        except (ValueError, TypeError, RecursionError):
            raise NotFound(_MISSING) from None
        if not genuine or version != VERSION:
            raise NotFound(_MISSING)
        own_id, tenant, calls, policy, created, expires, state, *decision = fields
        given = tuple(Call(*call) for call in calls)
        found = Approval(own_id, tenant, given, policy, created, expires, State(state), *decision)
        waits = found.state in (State.PENDING, State.APPROVED)
        if waits and found.expires <= self._clock():
            return replace(found, state=State.EXPIRED)
        return found

    # -- the index: what there is, and how much of it is whose -----------------------------------

    def _enter(self, approval: Approval, now: float) -> None:
        self._purge(now)

        def change(old: bytes | None) -> bytes:
            index = _parsed(old)
            waiting = [tenant for tenant, expires in index.values() if expires > now]
            if waiting.count(approval.tenant) >= self._policy.max_calls_per_caller:
                raise TooManyApprovals("too many calls of this caller wait for approval")
            if len(waiting) >= MAX_APPROVALS:
                raise TooManyApprovals("too many calls wait for approval")
            return json.dumps({**index, approval.id: [approval.tenant, approval.expires]}).encode()

        self._update(_INDEX, change)

    def _purge(self, now: float) -> None:
        """Drop what has ended, once whoever asked had time to hear of it."""
        grace_s = self._policy.approval_s
        index = self._read_index()
        gone = {i for i, (_, expires) in index.items() if expires + grace_s <= now}
        if not gone:
            return
        for approval_id in gone:  # before the index forgets them
            self._drop(approval_id)

        def change(old: bytes | None) -> bytes:
            return json.dumps({i: e for i, e in _parsed(old).items() if i not in gone}).encode()

        self._update(_INDEX, change)

    def _drop(self, approval_id: str) -> None:
        ended: Approval | None = None

        def change(old: bytes | None) -> None:
            nonlocal ended
            try:
                ended = self._open(approval_id, old)
            except NotFound:
                ended = None

        self._update(_key(approval_id), change)
        if ended is None or ended.form != CALLS:
            drop_answer(self._update, approval_id)
        if ended is not None and ended.state is State.EXPIRED:
            self._on_step(Step("expired", ended))

    def _read_index(self) -> dict[str, tuple[str, float]]:
        return _parsed(read_record(self._update, _INDEX))

    def _update(self, key: str, change: Change) -> None:
        if not self._is_open:
            try:
                self.open()
            except ConfigError as error:  # too late to stop the start
                raise StateUnavailable(str(error)) from None
        self._store.update(key, change)


def _key(approval_id: str) -> str:
    return f"approval:{approval_id}"


def _parsed(index: bytes | None) -> dict[str, tuple[str, float]]:
    """The index; one that can't be read is empty, for nothing is given out by it."""
    try:
        rows = json.loads(index or b"{}")
        return {str(name): (str(tenant), float(ends)) for name, (tenant, ends) in rows.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
