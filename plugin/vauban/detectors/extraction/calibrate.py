"""Learns what honest callers of one server look like, from its own traffic.

Robust on purpose, since the traffic may hold a thief's: callers that the present reference would
flag are left out, what remains moves the medians and the spreads only (a fifth of thieves moves a
median by a quarter of a spread), never the shape of the tails, and few callers move it little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vauban.detectors.extraction.learning import MIN_USERS, Statistics, move
from vauban.detectors.extraction.profile import Profile
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import NONE, Reference, Suspicion
from vauban.detectors.extraction.replay import Row
from vauban.errors import MalformedRequest
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Level


@dataclass(frozen=True, slots=True)
class Calibrated:
    """`drift`: how far each statistic's median moved, in the old spreads, mean over lengths."""

    reference: Reference
    learned: int
    suspects: int
    short: int
    drift: Mapping[str, float]


def calibrate(
    rows: Sequence[Row],
    reference: Reference,
    policy: ExtractionPolicy,
    *,
    keep_suspects: bool = False,
) -> Calibrated:
    """Services (`Caller.service`) are left out: they are compared with themselves.

    :raises MalformedRequest: fewer than `MIN_USERS` callers can be learned from.
    """
    streams: dict[str, list[Floats]] = defaultdict(list)
    for row in rows:
        if not row.caller.service:
            streams[row.caller.id].append(row.embedding)
    people: list[Statistics] = []
    suspects = short = 0
    for stream in streams.values():
        statistics, worst = _watch(np.stack(stream), reference)
        if not statistics:
            short += 1
        elif policy.level(reference.score(worst)) > Level.CLEAR and not keep_suspects:
            suspects += 1
        else:
            people.append(statistics)
    if len(people) < MIN_USERS:
        raise MalformedRequest(
            f"{len(people)} users can be learned from ({suspects} are suspect, {short} have too"
            f" few queries); at least {MIN_USERS} are needed"
        )
    moved, drift = move(reference, people)
    return Calibrated(moved, len(people), suspects, short, drift)


def _watch(stream: Floats, reference: Reference) -> tuple[Statistics, Suspicion]:
    """The statistics at each length of the tables, and the worst that was found on the way."""
    small = reference.projection(stream)
    fine = reference.projection.fine_cells(small, reference.projection.cells(small))
    profile, wanted = Profile(), set(reference.lengths.astype(int).tolist())
    found: Statistics = {}
    for vector, cell in zip(small, fine, strict=True):
        if profile.add(vector, int(cell)):
            profile.judge(reference)
            if profile.count in wanted:
                found[profile.count] = profile.windows()[-1][1]
    return found, max(profile.worst, NONE)
