"""The extraction detector's part of the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from vauban.policy_base import Section, field
from vauban.types import Level, Mode


class ExtractionPolicy(Section):
    """Who explores the model systematically. A score of 1/6 is ever reached by one honest person
    in ten within 5,120 queries, 2/6 by one in a hundred, and so on."""

    mode: Mode = field(
        Mode.ENFORCE, "enforce, monitor (no level is set, only reported) or off (no state kept)."
    )
    on_failure: Literal["degrade", "allow"] = field(
        "degrade",
        "While the detector fails: treat every caller as degraded or worse, or go on without it.",
    )
    metric: Literal["sessions", "article"] = field(
        "sessions",
        "sessions: order and spread of queries; article: std/mean of principal variances, which"
        " finds nobody (for comparison).",
    )
    reference: Path | None = field(
        None, "Directory of the honest reference; default: the one that ships in the package."
    )
    learn: Literal["off", "report", "use"] = field(
        "report",
        "report: measure while serving how far this server's honest callers are from the reference"
        " (drift); use: also move the reference there, in this process, by 1 honest spread at most;"
        " off: neither.",
    )
    flag_at: float = field(0.34, "Flag a caller at this score.", "score", ge=0.0, le=1.0)
    slow_at: float = field(0.42, "Slow a caller at this score.", "score", ge=0.0, le=1.0)
    degrade_at: float = field(0.5, "Degrade a caller at this score.", "score", ge=0.0, le=1.0)
    hold_at: float | None = field(
        None,
        "Hold a caller at this score, until an operator decides; none: never by a detector, since a"
        " caller who is held sends nothing more to judge.",
        "score",
        ge=0.0,
        le=1.0,
    )
    ban_at: float = field(0.67, "Ban a caller at this score.", "score", ge=0.0, le=1.0)
    step_queries: int = field(
        48,
        "Queries that a caller must make at a level before the next one, however high the score.",
        "queries",
        ge=1,
        le=100_000,
    )
    twin_at: float = field(
        0.92,
        "Cosine from which two accounts' queries count as the same (links campaigns).",
        "cosine",
        ge=0.5,
        le=1.0,
    )
    shared_queries: int = field(
        131_072,
        "Recent queries of all callers that are searched for links.",
        "queries",
        ge=1024,
        le=16_777_216,
    )
    max_memory_bytes: int = field(
        1024**3,
        "Memory for callers' windows, about 47 kB each at most; over it, who was silent longest"
        " is forgotten.",
        "bytes",
        ge=1024**2,
        le=1024**4,
    )
    device: Literal["auto", "cpu"] = field(
        "auto", "Where FAISS searches: a GPU if its build and the machine have one, or the CPU."
    )

    @model_validator(mode="after")
    def _levels_ascend(self) -> ExtractionPolicy:
        bounds = [bound for _, bound in self.levels]
        if bounds != sorted(bounds):
            raise ValueError("flag_at, slow_at, degrade_at, hold_at and ban_at must ascend")
        return self

    def level(self, score: float) -> Level:
        """The most that a score supports."""
        reached = [level for level, bound in self.levels if score >= bound]
        return max(reached, default=Level.CLEAR)

    @property
    def levels(self) -> tuple[tuple[Level, float], ...]:
        """The levels that a detector may set, from the mildest, each with its bound."""
        every = (
            (Level.FLAGGED, self.flag_at),
            (Level.SLOWED, self.slow_at),
            (Level.DEGRADED, self.degrade_at),
            (Level.HELD, self.hold_at),
            (Level.BANNED, self.ban_at),
        )
        return tuple((level, bound) for level, bound in every if bound is not None)
