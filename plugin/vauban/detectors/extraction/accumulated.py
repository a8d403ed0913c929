"""Evidence that accumulates over a caller's life, in a handful of numbers that add up.

Each `SEGMENT` queries of a caller give one value for every arm. Their sum, and how many there
were, is all that is kept: whether a caller's *mean* goes further than honest people's means over
as many segments do is a sequential test. The segments of one person depend on each other, so its
thresholds come from simulated people and from no formula (`reference.py`). Sums of several
processes that see parts of the same caller's queries add up to what one process would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.projection import Floats

ARMS: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType({
    "order": {"session_strength": -1.0},
    "breadth": {
        "lone_order_share": 0.25, "lone_share": 0.25, "lone_new_share": 0.25, "lone_cells": 0.25,
    },
    "both": {
        "session_strength": -0.5, "lone_order_share": 0.125, "lone_share": 0.125,
        "lone_new_share": 0.125, "lone_cells": 0.125,
    },
    "mixed": {"interrupts": 0.34, "new_sessions": 0.33, "lone_new_share": 0.33},
    "chain": {
        "session_spread": -0.2, "new_sessions": 0.2, "lone_new_share": -0.2, "lone_share": -0.2,
        "interrupts": -0.2,
    },
    "threads": {"short_threads": 0.5, "lone_share": -0.25, "lone_new_share": -0.25},
    "sweep": {"session_strength": 0.5, "new_share": 0.5},
})  # fmt: skip
"""Which statistics an arm adds up. The order finds whoever samples, also a narrow pool; breadth
whoever mixes a wide search into ordinary talk, mixed whoever interrupts that talk for it; chain
whoever follows up every seed alike, threads whoever does so a few times, also where all texts are
alike; sweep whoever sorts the queries so that each is like the one
before and none comes back."""

SEGMENT: Final = 64
"""Queries that give one value for every arm."""
FORGOTTEN: Final = 1 / 64
"""Share of what has accumulated that the next segment pushes out."""
_MOST: Final = 6.0
_NAMES: Final = tuple(f"extraction/{name}" for name in ("segments", *ARMS))


@dataclass(frozen=True, slots=True, eq=False)
class Accumulated:
    """`segments`: how many values were added, those of long ago counting less. `sums`: of each
    arm [arms], in honest spreads."""

    segments: float
    sums: NDArray[np.float64]

    def after(self, values: Floats) -> Accumulated:
        """With one more segment.

        :param values: of each arm [arms].
        """
        sums = self.sums * (1.0 - FORGOTTEN) + np.clip(values, -_MOST, _MOST)
        return Accumulated(self.segments * (1.0 - FORGOTTEN) + 1.0, sums)

    def __sub__(self, other: Accumulated) -> Accumulated:
        return Accumulated(self.segments - other.segments, self.sums - other.sums)

    @property
    def means(self) -> Floats:
        """Of each arm [arms]; 0 where nothing was added."""
        return (self.sums / max(self.segments, 1.0)).astype(np.float32)

    def counts(self) -> dict[str, float]:
        """As named numbers that add up."""
        return dict(zip(_NAMES, [self.segments, *self.sums.tolist()], strict=True))

    @classmethod
    def of(cls, counts: Mapping[str, float]) -> Accumulated:
        """Back from `counts`; what is not there is 0, and what can't be is cut to what can."""
        numbers = np.nan_to_num([counts.get(name, 0.0) for name in _NAMES])
        segments = float(np.clip(numbers[0], 0.0, 2.0 / FORGOTTEN))
        return cls(segments, np.clip(numbers[1:], -_MOST * segments, _MOST * segments))


NOTHING_YET: Final = Accumulated(0.0, np.zeros(len(ARMS)))
