"""How a user is treated, and why: what is kept of it, and the rules that change it. Pure.

Two things count for a user. What a detector *found* raises the level, is prolonged by more of the
same, and falls step by step when time passes. What an operator *decided* holds until its time,
or until an operator decides again. The worse of the two is how the user is treated. Of evidence,
scores and counts are kept; never a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pydantic import TypeAdapter, ValidationError

from vauban.errors import StateUnavailable
from vauban.policy_standing import ResponsePolicy
from vauban.types import Evidence, Level

DETECTOR: Final = "detector"
TIME: Final = "time"
PROPOSE: Final = "propose"
RESET_KEPT_S: Final = 3_600.0
"""How long it is remembered that somebody was forgiven or erased: until every server knows."""
_PROLONG_AT: Final = 0.9
_RENAMED_AFTER_S: Final = 60.0
_MAX_SIGNALS: Final = 64
_MAX_NAME: Final = 128

_FALLS_TO: Final[Mapping[Level, Level]] = {
    Level.BANNED: Level.DEGRADED,  # to held, it would take an operator to get out
    Level.HELD: Level.DEGRADED,
    Level.DEGRADED: Level.SLOWED,
    Level.SLOWED: Level.FLAGGED,
    Level.FLAGGED: Level.CLEAR,
}


@dataclass(frozen=True, slots=True)
class Standing:
    """How a user is treated now. Times in seconds since the epoch.

    `until`: when this level ends; None = when an operator decides. `by`: `detector`, or the
    principal id of an operator, whose words `reason` are.
    """

    principal: str
    level: Level = Level.CLEAR
    since: float = 0.0
    until: float | None = None
    by: str = ""
    reason: str = ""
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a detector holds against a user. `began`: when it first found anything, since when the
    level has been raised, prolonged or has fallen."""

    level: Level
    began: float
    since: float
    until: float | None
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What an operator has decided about a user."""

    level: Level
    since: float
    until: float | None
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that is kept of one user. Evidence that began before `reset_at` doesn't count."""

    principal: str
    found: Found | None = None
    decided: Decided | None = None
    reset_at: float = 0.0

    @property
    def level(self) -> Level:
        """The level as written, whatever time it is."""
        return max((part.level for part in (self.found, self.decided) if part), default=Level.CLEAR)


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of how a user is treated, or an operator's act that changed no level.

    `action`: observe, propose, ban, unban, level, forget or expire. `by`: `detector`, `time`, or
    the principal id of the operator. `until`: as in `Standing`.
    """

    principal: str
    action: str
    before: Level
    after: Level
    by: str
    until: float | None
    evidence: Evidence | None

    @property
    def actor(self) -> str:
        """`detector`, `time` or `operator`: who acts, without naming anybody."""
        return self.by if self.by in (DETECTOR, TIME) else "operator"


_RECORD: Final = TypeAdapter(Record)


def encode(record: Record) -> bytes:
    return _RECORD.dump_json(record)


def decode(value: bytes) -> Record:
    """:raises StateUnavailable: it is not a record of this version."""
    try:
        return _RECORD.validate_json(value)
    except ValidationError:
        raise StateUnavailable("a record can't be read") from None


def _kept(evidence: Evidence) -> Evidence:
    """Evidence of bounded size, in numbers that every store can keep; what is none is the worst."""
    signals = [(n[:_MAX_NAME], v) for n, v in evidence.signals if math.isfinite(v)][:_MAX_SIGNALS]
    return replace(
        evidence,
        score=evidence.score if math.isfinite(evidence.score) else 1.0,
        signals=tuple(signals),
        campaign=evidence.campaign[:_MAX_NAME],
        proposed=evidence.proposed[:_MAX_NAME],
        at=None,
    )


def _news(evidence: Evidence, known: Evidence | None, age_s: float) -> Evidence | None:
    """The evidence, if it has a campaign or a proposal where the record has none; what it lacks
    itself is kept. Servers may see both differently, and a caller may ask them in turn, each query
    a write: that a campaign has another name is news later only, that a proposal is taken back is
    none.

    :param age_s: seconds since the record was written.
    """
    campaign, proposed = (known.campaign, known.proposed) if known else ("", "")
    found = evidence.campaign[:_MAX_NAME]
    renamed = found not in ("", campaign) and age_s >= _RENAMED_AFTER_S
    if not renamed and (campaign or not found) and (proposed or not evidence.proposed):
        return None
    return replace(evidence, campaign=found or campaign, proposed=evidence.proposed or proposed)


class Rules:
    """How records change under a policy. None of these methods changes what it is given."""

    def __init__(self, policy: ResponsePolicy) -> None:
        self._lasts: dict[Level, float | None] = {
            Level.FLAGGED: policy.flagged_s,
            Level.SLOWED: policy.slowed_s,
            Level.DEGRADED: policy.degraded_s,
            Level.HELD: None,
            Level.BANNED: policy.banned_s,
        }
        self._person = Level[policy.person_ceiling.upper()]
        self._service = Level[policy.service_ceiling.upper()]

    def standing(self, record: Record, now: float) -> Standing:
        record = self.settle(record, now)
        found, decided = record.found, record.decided
        evidence = found.evidence if found else None
        if decided and (found is None or decided.level >= found.level):
            return Standing(
                record.principal, decided.level, decided.since, decided.until, decided.by,
                decided.reason, evidence,
            )  # fmt: skip
        if found:
            return Standing(
                record.principal, found.level, found.since, found.until, DETECTOR, "", evidence
            )
        return Standing(record.principal)

    def settle(self, record: Record, now: float) -> Record:
        """The record with everything ended that has ended by now."""
        found, decided = record.found, record.decided
        while found and found.until is not None and found.until <= now:
            found = self._fallen(found, found.until)
        if decided and decided.until is not None and decided.until <= now:
            decided = None
        if found is record.found and decided is record.decided:
            return record
        return replace(record, found=found, decided=decided)

    def _fallen(self, found: Found, when: float) -> Found | None:
        level = _FALLS_TO[found.level]
        lasts = self._lasts.get(level)
        if lasts is None:
            return None
        return replace(found, level=level, since=when, until=when + lasts)

    def observe(
        self, record: Record, evidence: Evidence, *, service: bool, began_at: float | None,
        now: float,
    ) -> Record:  # fmt: skip
        """More evidence. The very same record when it changes nothing worth keeping."""
        level = min(evidence.level, self._service if service else self._person)
        if level is Level.CLEAR or (began_at is not None and began_at < record.reset_at):
            return record
        settled = self.settle(record, now)
        found, lasts = settled.found, self._lasts[level]
        until = None if lasts is None else now + lasts
        if found is None or level > found.level:
            began = found.began if found else now
            return replace(settled, found=Found(level, began, now, until, _kept(evidence)))
        if level < found.level or lasts is None or found.until is None:
            return record
        told: Evidence | None = evidence
        if found.until - now > _PROLONG_AT * lasts:  # or every query of one who goes on is a write
            told = _news(evidence, found.evidence, now + lasts - found.until)
        if told is None:
            return record
        until = max(found.until, now + lasts)
        return replace(settled, found=replace(found, until=until, evidence=_kept(told)))

    def decide(
        self, record: Record, level: Level, *, seconds: float | None, by: str, reason: str,
        now: float,
    ) -> Record:  # fmt: skip
        """An operator's decision. One that lowers the level forgives what was found.

        :param seconds: how long; None = as the policy has it for this level.
        """
        settled = self.settle(record, now)
        if settled.found and level < settled.found.level:
            settled = replace(settled, found=None, reset_at=now)
        if level is Level.CLEAR:
            return replace(settled, found=None, decided=None, reset_at=now)
        lasts = self._lasts[level] if seconds is None else seconds
        until = None if lasts is None else now + lasts
        return replace(settled, decided=Decided(level, now, until, by, reason))

    def forget(self, record: Record, now: float) -> Record:
        """Nothing but the name of a user who is held or banned; of any other, nothing at all.

        That the name was reset is kept for `RESET_KEPT_S`, or a server that has not heard of it
        yet would write the rest back.
        """
        standing = self.standing(record, now)
        if standing.level < Level.HELD:
            return Record(record.principal, reset_at=now)
        kept = Decided(standing.level, standing.since, standing.until, standing.by, "")
        return Record(record.principal, decided=kept, reset_at=now)

    def join(self, one: Record, other: Record, now: float) -> Record:
        """What two servers know of the same user, together: the worse of what was found since the
        last reset, and the later decision."""
        one, other = self.settle(one, now), self.settle(other, now)
        reset_at = max(one.reset_at, other.reset_at)
        found = max(
            (r.found for r in (one, other) if r.found and r.found.began >= reset_at),
            key=lambda f: (f.level, f.until is None, f.until or 0.0, -f.since),
            default=None,
        )
        decided = max(
            # A ban that outlived being forgotten began before that reset.
            (d for r in (one, other) if (d := r.decided)
             and (r.reset_at == reset_at or d.since >= reset_at)),
            key=lambda d: (d.since, d.level, d.until is None, d.until or 0.0),
            default=None,
        )  # fmt: skip
        return Record(one.principal, found, decided, reset_at)

    def is_void(self, record: Record, now: float) -> bool:
        """Nothing is known of the user, and no server needs to hear that."""
        settled = self.settle(record, now)
        return (
            settled.found is None
            and settled.decided is None
            and (not settled.reset_at or settled.reset_at <= now - RESET_KEPT_S)
        )
