"""A declared service is compared with itself: has what it asks about changed?

Geometry can't tell a service from a thief (both sample), so a service is not held to it. What it
asks is counted over coarse cells while it is new; from then on each block of queries is scored by
how surprising its cells are under those counts, and a one-sided CUSUM (Page 1954) over the
standardised blocks accumulates what is too much. Blocks, because the queries of one person behind
the service resemble each other. The baseline follows slowly, as a service's users drift.

A service that nobody declared is flagged like a thief, for how it samples. While what it asks does
not change either, as that of a program and unlike that of a person with one subject after the
other, it is proposed to the operator as a service. Most thieves are as steady, so a proposal is a
question and never lowers a level.

Does not cover: a service that steals from its first query; theft through a service that passes on
what many people ask, which is as varied by itself. Its quota and the campaign test are left there.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.pooled import measure
from vauban.detectors.extraction.projection import Small
from vauban.detectors.extraction.reference import ACCUMULATED

LEARN_QUERIES: Final = 1024
"""Queries that a service's own baseline is learned from."""
BLOCK_QUERIES: Final = 64
ALLOWANCE: Final = 1.0
"""Standard deviations by which a block may be over the baseline's mean for nothing."""
ALARM: Final = 10.0
"""CUSUM at which the score is `ALARM_SCORE`."""
ALARM_SCORE: Final = 0.5
FOLLOW: Final = 0.1
"""Share of a block's deviation by which the expected surprise follows it."""
STEADY_QUERIES: Final = 256
"""The last queries of a caller that are looked at to propose it, in two halves."""
LEAST_STEADY: Final = 64
STEADY: Final = 0.5
"""How mingled the halves are (`pooled.Verdict`) of a caller that asks as it did before. Of
simulated people who are flagged 0.1 to 0.4; of services 0.5 to 1, whatever they do."""
_PROGRAM_ARMS: Final = frozenset({"order", "breadth", "both"})
_SMOOTHING: Final = 32.0
_LEAST_DEVIATION: Final = 0.15
_MOST_PER_BLOCK: Final = 4.0
_MOST_FOLLOWED: Final = 2.0


def might_be_service(arm: str, window: Small) -> bool:
    """Whether a caller that is flagged might be a service: the order or the breadth of its queries
    is what is odd about it, and the later ones are like those before.

    :param arm: by which it is suspect, as `reference.Suspicion` has it.
    :param window: its queries, oldest first, int8 [n, 64].
    """
    if arm.removeprefix(ACCUMULATED) not in _PROGRAM_ARMS or len(window) < LEAST_STEADY:
        return False
    window = window[-STEADY_QUERIES:]
    halves = np.arange(len(window)) * 2 // len(window)
    return measure(window, halves)[0] >= STEADY


class ServiceBaseline:
    """:param cells: how many coarse cells there are."""

    __slots__ = ("_block", "_counts", "_cusum", "_mean", "_seen", "_std")

    def __init__(self, cells: int) -> None:
        self._counts: NDArray[np.float64] = np.zeros(cells)
        self._seen: list[int] = []
        self._block: list[int] = []
        self._mean = self._std = 0.0
        self._cusum = 0.0

    @property
    def learned(self) -> bool:
        return self._std > 0.0

    @property
    def score(self) -> float:
        """In [0, 1]; `ALARM_SCORE` where the change is beyond doubt."""
        return min(1.0, self._cusum / ALARM * ALARM_SCORE)

    def add(self, cell: int) -> None:
        if not self.learned:
            self._seen.append(cell)
            if len(self._seen) == LEARN_QUERIES:
                self._learn()
            return
        self._block.append(cell)
        if len(self._block) < BLOCK_QUERIES:
            return
        block, self._block = self._block, []
        deviation = (self._surprise(block, self._counts) - self._mean) / self._std
        self._cusum = max(0.0, self._cusum + min(deviation - ALLOWANCE, _MOST_PER_BLOCK))
        np.add.at(self._counts, block, 1.0)
        followed = min(max(deviation, -_MOST_FOLLOWED), _MOST_FOLLOWED)
        self._mean += FOLLOW * followed * self._std

    def _learn(self) -> None:
        """Blocks are scored against the counts of all the others, as later ones will be."""
        np.add.at(self._counts, self._seen, 1.0)
        blocks = np.array(self._seen).reshape(-1, BLOCK_QUERIES)
        self._seen = []
        surprises = []
        for block in blocks:
            others = self._counts.copy()
            np.add.at(others, block, -1.0)
            surprises.append(self._surprise(block.tolist(), others))
        self._mean = float(np.mean(surprises))
        self._std = max(float(np.std(surprises, ddof=1)), _LEAST_DEVIATION)

    @staticmethod
    def _surprise(block: list[int], counts: NDArray[np.float64]) -> float:
        """Mean -ln of the smoothed share of each query's cell."""
        shares = (counts + _SMOOTHING / len(counts)) / (counts.sum() + _SMOOTHING)
        return float(-np.log(shares[block]).mean())
