"""The words of the domain. Frozen, and free of tensors and of HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final


class Origin(StrEnum):
    """Who wrote a piece of text. Decided by identity and position, never by what a role claims."""

    OPERATOR = "operator"
    USER = "user"
    TOOL = "tool"
    DOCUMENT = "document"

    @property
    def trusted(self) -> bool:
        return self is Origin.OPERATOR


class Action(IntEnum):
    """What to do with a request, ordered so that `max` is always the safe combination."""

    ALLOW = 0
    FLAG = 1
    DEGRADE = 2
    HOLD = 3
    BLOCK = 4


class Mode(StrEnum):
    """How much a detector may do: act on its verdict, only report it, or not run at all."""

    ENFORCE = "enforce"
    MONITOR = "monitor"
    OFF = "off"


class Reason(StrEnum):
    """Why a verdict is what it is. Shown to clients, in metrics and in audit events."""

    CLEAN = "clean"
    PROMPT_INJECTION = "prompt_injection"
    SUSPICIOUS = "suspicious"
    SCREEN_FAILED = "screen_failed"
    SCREEN_TIMEOUT = "screen_timeout"
    SCREEN_OVERLOADED = "screen_overloaded"
    UNREAD_TEXT = "unread_text"
    WATCH_FAILED = "watch_failed"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of text of a request.

    Pieces with the same `part_of` (when it is not empty) belong together, like the strings of a
    tool definition: the encoder reads them as one text.
    """

    text: str
    origin: Origin
    part_of: str = ""


@dataclass(frozen=True, slots=True)
class Signal:
    """What one detector found. `score` is in [0, 1], 1 = worst."""

    detector: str
    score: float
    action: Action
    reason: Reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """The combined decision about one request.

    `action` is what is done; `proposed` is what enforce mode would have done (they differ in
    monitor mode only). More evidence never lowers either.
    """

    action: Action
    reason: Reason
    proposed: Action
    signals: tuple[Signal, ...] = ()

    @property
    def blocked(self) -> bool:
        return self.action >= Action.BLOCK

    @property
    def score(self) -> float:
        """The worst score of all signals, 0.0 when nothing was screened."""
        return max((s.score for s in self.signals), default=0.0)


class Level(IntEnum):
    """How a principal is treated, ordered from freely to not at all."""

    CLEAR = 0
    FLAGGED = 1
    SLOWED = 2
    DEGRADED = 3
    HELD = 4
    BANNED = 5


SERVICE: Final = "service"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the extraction detector knows of one principal after a query; no text, no embedding.

    `score` is in [0, 1], 1 = worst. `level` is the most that this evidence supports. `signals`
    names what it is made of. `campaign` names the group of accounts it was found in, or is empty.
    `began_at`: when it began to be gathered, in seconds since the epoch. `proposed`: `SERVICE`
    where the operator is asked whether the caller is one that was not declared, or empty.
    `at`: where the query lies on a plane (`extraction/plane.py`), to be drawn; it is no evidence.
    """

    score: float
    level: Level
    queries: int
    signals: tuple[tuple[str, float], ...] = ()
    campaign: str = ""
    began_at: float = 0.0
    at: tuple[float, float] | None = field(default=None, compare=False)
    proposed: str = ""

    def lying_at(self, x: float, y: float) -> Evidence:
        """The same of a query that lies there. Written out, as it is made for every request:
        `dataclasses.replace` takes two and a half times as long."""
        return Evidence(
            self.score, self.level, self.queries, self.signals, self.campaign, self.began_at,
            (x, y), self.proposed,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caller:
    """What the extraction detector is told of who asked.

    `tags`: what it shares with other callers by credential or address (a key's group, an address
    block); never what a client says of itself. `forgiven_at`: what was gathered before, in seconds
    since the epoch, must be forgotten. `prompts`: how many the request holds that have nothing to
    do with each other (a list of prompts, a batch of chats).
    """

    id: str
    service: bool = False
    tags: tuple[str, ...] = ()
    forgiven_at: float = 0.0
    prompts: int = 1


class PrincipalKind(StrEnum):
    ANONYMOUS = "anonymous"
    KEY = "key"
    JWT = "jwt"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Ceilings per minute; None = no ceiling."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. `id` is stable, unique, and safe to log (never the credential itself).

    `service`: declared by the operator to be a program that serves many people. `group`: whom
    the credential was issued to together with others (a customer, a parent key), or empty.
    """

    id: str
    kind: PrincipalKind
    scopes: frozenset[str] = field(default_factory=frozenset)
    limit: RateLimit = field(default_factory=RateLimit)
    service: bool = False
    group: str = ""
