"""Recorded queries through the detector: what it would have done to whom, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.projection import Floats
from vauban.types import Caller, Evidence, Level

ACTIONS: Final = ("allow", "flag", "slow", "degrade", "hold", "ban")
"""What is done to a caller at each `Level`."""
BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded query. `time`: as recorded; it is carried along and not judged."""

    caller: Caller
    embedding: Floats
    time: float | str | None = None


@dataclass(slots=True)
class Step:
    """What was known of a caller after `query` queries."""

    query: int
    time: float | str | None
    score: float
    level: Level


@dataclass(slots=True)
class UserReport:
    """One caller's replay.

    `action`: the strongest thing that would have been done to it, by name. `first_action_at`:
    the query after which it was first at `flag` or above; `reached_at`: the query for each
    action. `score`: at the end, `peak_score`: the highest on the way.
    """

    user: str
    queries: int = 0
    score: float = 0.0
    peak_score: float = 0.0
    level: Level = Level.CLEAR
    reached_at: dict[str, int] = field(default_factory=dict)
    signals: tuple[tuple[str, float], ...] = ()
    campaign: str = ""
    steps: list[Step] = field(default_factory=list)

    @property
    def action(self) -> str:
        return ACTIONS[self.level]

    @property
    def first_action_at(self) -> int | None:
        return min(self.reached_at.values(), default=None)

    def take(self, evidence: Evidence, time: float | str | None) -> None:
        """Enter what is known now."""
        changed = evidence.score != self.score or evidence.level is not Level.CLEAR
        self.score = evidence.score
        self.signals, self.campaign = evidence.signals, evidence.campaign or self.campaign
        self.peak_score = max(self.peak_score, evidence.score)
        if evidence.level > self.level:
            self.level = evidence.level
        if evidence.level > Level.CLEAR:
            self.reached_at.setdefault(ACTIONS[evidence.level], self.queries)
        if changed and (not self.steps or self.steps[-1].score != evidence.score):
            self.steps.append(Step(self.queries, time, evidence.score, evidence.level))


def replay(
    rows: Iterable[Row],
    detector: ExtractionDetector,
    progress: Callable[[int], object] = lambda done: done,
) -> list[UserReport]:
    """Feed the rows in order, as if each batch were one step of the server.

    :param progress: called with how many rows each batch had.
    :returns: one report per user, in order of first appearance.
    :raises ValueError: an embedding does not fit the detector's reference.
    """
    reports: dict[str, UserReport] = {}
    for batch in _batches(rows):
        queries = [Query(row.caller, row.embedding) for row in batch]
        for row, evidence in zip(batch, detector.observe(queries), strict=True):
            report = reports.setdefault(row.caller.id, UserReport(row.caller.id))
            report.queries += 1
            report.take(evidence, row.time)
        progress(len(batch))
    for report in reports.values():
        report.take(detector.settle(report.user), None)
    return list(reports.values())


def _batches(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch
