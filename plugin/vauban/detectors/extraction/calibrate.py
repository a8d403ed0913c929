"""Learns what honest callers of one server look like, from its own traffic.

Robust on purpose, since the traffic may hold a thief's: callers that the present reference would
flag are left out, what remains moves the medians and the spreads only (a fifth of thieves moves a
median by a quarter of a spread), never the shape of the tails, and few callers move it little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vauban.detectors.extraction.features import STATISTICS
from vauban.detectors.extraction.profile import Profile
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import NONE, Reference, Suspicion
from vauban.detectors.extraction.replay import Row
from vauban.errors import MalformedRequest
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Level

MIN_USERS: Final = 20
PRIOR_USERS: Final = 50.0
"""The shipped reference counts as much as this many callers."""
_QUARTILE_TO_DECILE: Final = 1.9
_MOST_SPREAD: Final = 3.0

_Stats = dict[int, Floats]


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
    people: list[_Stats] = []
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
    moved, drift = _move(reference, people)
    return Calibrated(moved, len(people), suspects, short, drift)


def _watch(stream: Floats, reference: Reference) -> tuple[_Stats, Suspicion]:
    """The statistics at each length of the tables, and the worst that was found on the way."""
    small = reference.projection(stream)
    fine = reference.projection.fine_cells(small, reference.projection.cells(small))
    profile, wanted = Profile(), set(reference.lengths.astype(int).tolist())
    found: _Stats = {}
    for vector, cell in zip(small, fine, strict=True):
        if profile.add(vector, int(cell)):
            profile.judge(reference)
            if profile.count in wanted:
                found[profile.count] = profile.windows()[-1][1]
    return found, max(profile.worst, NONE)


def _move(reference: Reference, people: Sequence[_Stats]) -> tuple[Reference, dict[str, float]]:
    centre, up, down = (table.copy() for table in (reference.centre, reference.up, reference.down))
    moves: list[Floats] = []
    for place, length in enumerate(reference.lengths.astype(int).tolist()):
        seen = np.array([stats[length] for stats in people if length in stats])
        if len(seen) < MIN_USERS:
            if moves:  # too few callers get this far: as at the length before
                centre[place] += moves[-1] * np.where(moves[-1] > 0, up[place], down[place])
            continue
        weight = len(seen) / (len(seen) + PRIOR_USERS)
        low, median, high = np.quantile(seen, [0.25, 0.5, 0.75], axis=0)
        offset = weight * (median - centre[place])
        moves.append(offset / np.where(offset > 0, up[place], down[place]))
        centre[place] += offset
        for table, quarter in ((up, high - median), (down, median - low)):
            ratio = np.clip(quarter * _QUARTILE_TO_DECILE / table[place], 1.0, _MOST_SPREAD)
            table[place] *= 1.0 + weight * (ratio - 1.0)
    about = {**reference.about, "calibrated_on_users": len(people)}
    drift = dict(zip(STATISTICS, np.mean(moves, axis=0).tolist(), strict=True))
    return replace(reference, centre=centre, up=up, down=down, about=about), drift
