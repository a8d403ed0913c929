"""Learns while the server runs what its honest callers look like, and how far the reference is off.

Robust against the traffic that it learns from: a caller has one vote however much it asks, callers
that share a credential's group or an address block have `MOST_ALIKE` between them, who is suspect
loses its vote, and medians and quartiles of the last `MOST_VOTERS` move the reference that it
began with, never what was learned before, by at most `MOST_MOVED` spreads.

Does not cover: more thieves than honest callers; they move the reference as far as it goes. Nothing
tells callers apart that have no group and no public address: each of them has a vote.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from vauban.detectors.extraction.features import STATISTICS
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import Reference

MIN_USERS: Final = 20
PRIOR_USERS: Final = 50.0
"""The reference that is moved counts as much as this many callers."""
MOST_VOTERS: Final = 1024
"""Each takes about 1 kB."""
MOST_ALIKE: Final = 4
MOST_MOVED: Final = 1.0
EVERY_VOTERS: Final = 32
"""New voters after which the reference is moved anew."""
FIRST_VOTE: Final = 64
"""Queries after which a caller is a voter: less says little of it."""
_QUARTILE_TO_DECILE: Final = 1.9
_MOST_SPREAD: Final = 3.0

Statistics = dict[int, Floats]
"""Of one caller: number of its first queries -> their statistics."""


@dataclass(slots=True)
class _Voter:
    tags: Sequence[str]
    statistics: Statistics = field(default_factory=dict)


class Learner:
    """:param base: the reference that is moved."""

    def __init__(self, base: Reference) -> None:
        self._base = base
        self._lengths = frozenset(n for n in base.lengths.astype(int).tolist() if n >= FIRST_VOTE)
        self._voters: OrderedDict[str, _Voter] = OrderedDict()
        self._alike: Counter[str] = Counter()
        self._fresh = 0

    def __len__(self) -> int:
        return len(self._voters)

    def wants(self, count: int) -> bool:
        """Whether a caller's statistics are of use after so many queries."""
        return count in self._lengths

    def take(self, caller: str, tags: Sequence[str], length: int, statistics: Floats) -> None:
        """A caller's statistics over its first `length` queries."""
        voter = self._voters.get(caller)
        if voter is None:
            if any(self._alike[tag] >= MOST_ALIKE for tag in tags):
                return
            voter = self._voters[caller] = _Voter(tuple(tags))
            self._alike.update(voter.tags)
            self._fresh += 1
            while len(self._voters) > MOST_VOTERS:
                self.withdraw(next(iter(self._voters)))
        voter.statistics[length] = statistics

    def withdraw(self, caller: str) -> None:
        """Take a caller's vote back."""
        voter = self._voters.pop(caller, None)
        if voter is None:
            return
        for tag in voter.tags:
            self._alike[tag] -= 1
            if not self._alike[tag]:
                del self._alike[tag]

    def learned(self) -> tuple[Reference, dict[str, float]] | None:
        """The reference moved, and how far each statistic's median is off in honest spreads, mean
        over lengths; None while there is nothing new."""
        if self._fresh < EVERY_VOTERS or len(self._voters) < MIN_USERS:
            return None
        self._fresh = 0
        return move(self._base, [v.statistics for v in self._voters.values()], MOST_MOVED)


def move(
    reference: Reference, people: Sequence[Statistics], at_most: float = np.inf
) -> tuple[Reference, dict[str, float]]:
    """The reference moved to what these callers do, and how far each statistic's median moved.

    :param people: `MIN_USERS` or more.
    :param at_most: how far a median moves, in the old spreads; how far it would is told all the
        same.
    """
    centre, up, down = (table.copy() for table in (reference.centre, reference.up, reference.down))
    moves: list[Floats] = []
    last: Floats | None = None
    for place, length in enumerate(reference.lengths.astype(int).tolist()):
        seen = np.array([stats[length] for stats in people if length in stats])
        if len(seen) < MIN_USERS:
            if last is not None:  # too few callers get this far: as at the length before
                centre[place] += last * np.where(last > 0, up[place], down[place])
            continue
        weight = len(seen) / (len(seen) + PRIOR_USERS)
        low, median, high = np.quantile(seen, [0.25, 0.5, 0.75], axis=0)
        offset = weight * (median - centre[place])
        spread = np.where(offset > 0, up[place], down[place])
        moves.append(offset / spread)
        last = np.clip(moves[-1], -at_most, at_most)
        centre[place] += last * spread
        for table, quarter in ((up, high - median), (down, median - low)):
            ratio = np.clip(quarter * _QUARTILE_TO_DECILE / table[place], 1.0, _MOST_SPREAD)
            table[place] *= 1.0 + weight * (ratio - 1.0)
    about = {**reference.about, "calibrated_on_users": len(people)}
    drift = dict.fromkeys(STATISTICS, 0.0)
    if moves:
        drift = dict(zip(STATISTICS, np.mean(moves, axis=0).tolist(), strict=True))
    return replace(reference, centre=centre, up=up, down=down, about=about), drift
