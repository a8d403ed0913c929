"""One caller's recent queries, and how suspect they are. Bounded; holds no text."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.accumulated import NOTHING_YET, SEGMENT, Accumulated
from vauban.detectors.extraction.features import (
    MEASURES,
    MIN_QUERIES,
    NEAR,
    WINDOW,
    Measured,
    measure,
    statistics,
)
from vauban.detectors.extraction.projection import DIMENSIONS, Floats, Small, unit
from vauban.detectors.extraction.reference import NONE, Reference, Suspicion

BLOCK: Final = 32
"""A caller is judged anew every so many queries of theirs."""
_VECTORS: Final = WINDOW + 2 * NEAR + BLOCK
_FIRST_ROOM: Final = 64

PROFILE_BYTES: Final = _VECTORS * DIMENSIONS + (WINDOW + BLOCK) * (MEASURES * 2 + 2) + 1_024
"""Most memory that one caller takes, in bytes."""


class Profile:
    """The state of one caller. Depends on that caller's queries and their order alone."""

    __slots__ = (
        "_cells",
        "_gathered_at",
        "_held",
        "_kept",
        "_measured",
        "_measures",
        "_nbytes",
        "_vectors",
        "accumulated",
        "count",
        "over_all",
        "suspicion",
        "worst",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count = 0
        """Queries so far."""
        self.suspicion: Suspicion = NONE
        self.worst: Suspicion = NONE
        self.accumulated: Accumulated = NOTHING_YET
        self.over_all: Suspicion = NONE
        self._gathered_at = 0
        self._vectors = np.empty((_FIRST_ROOM, DIMENSIONS), np.int8)
        self._held = 0
        self._measures = np.empty((MEASURES, _FIRST_ROOM), np.float16)
        self._cells = np.empty(_FIRST_ROOM, np.uint16)
        self._kept = 0  # queries in _measures and _cells, also those without measures yet
        self._measured = 0  # of those, the first so many have their final measures
        self._nbytes = 0  # counted when room is made, and not at every query
        self._count_bytes()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def add(self, vector: Small, fine_cell: int) -> bool:
        """Take one query. True when the caller is due to be judged.

        :param vector: int8 [64].
        """
        if self._held == len(self._vectors):
            self._make_room_for_vectors()
        if self._kept == len(self._cells):
            self._make_room_for_measures()
        self._vectors[self._held] = vector
        self._cells[self._kept] = fine_cell
        self._held += 1
        self._kept += 1
        self.count += 1
        return self.count >= MIN_QUERIES and self.count % BLOCK == 0

    def judge(self, reference: Reference) -> Suspicion:
        """Measure what is new, and judge the trailing windows and what has accumulated."""
        found = NONE
        for length, window in self.windows():
            values = reference.arm_values(window, length)
            found = max(found, reference.suspect(values, length))
            if length == SEGMENT and self.count % SEGMENT == 0 and self.count > self._gathered_at:
                self._gathered_at = self.count
                self.accumulated = self.accumulated.after(values)
        self.over_all = reference.suspect_all(self.accumulated)
        found = max(found, self.over_all)
        self.suspicion = found
        self.worst = max(self.worst, found)
        return found

    def windows(self) -> list[tuple[int, Floats]]:
        """The trailing windows, each with its length and its statistics."""
        if self.count < MIN_QUERIES:
            return []
        self._measure()
        lengths = _windows(self._kept)
        first = self._kept - lengths[-1]
        taken = Measured.unstack(self._measures[:, first : self._kept])
        found = statistics(taken, self._cells[first : self._kept], lengths)
        return list(zip(lengths, found, strict=True))

    def coarse_cells(self, fine: int) -> NDArray[np.integer]:
        """Coarse cell of each query kept, oldest first."""
        cells: NDArray[np.integer] = self._cells[: self._kept] // fine
        return cells

    def vectors(self) -> Small:
        """int8 [n, 64]: the vectors that are kept, oldest first."""
        return self._vectors[: self._held]

    def _measure(self) -> None:
        # While a caller is new, what was measured against few queries is measured again.
        again = self._kept == self._held and self.count & (self.count - 1) == 0
        first = 0 if again else self._measured
        found = measure(unit(self.vectors()), self._held - (self._kept - first))
        self._measures[:, first : self._kept] = found.stack()
        # The last ones have not seen all their neighbours yet.
        self._measured = self._kept - NEAR

    def _count_bytes(self) -> None:
        arrays = self._vectors, self._measures, self._cells
        self._nbytes = sum(array.nbytes for array in arrays) + 1_024

    def _make_room_for_vectors(self) -> None:
        room = len(self._vectors)
        if room < _VECTORS:
            grown = np.empty((min(2 * room, _VECTORS), DIMENSIONS), np.int8)
            grown[:room] = self._vectors
            self._vectors = grown
            self._count_bytes()
            return
        self._vectors[:-BLOCK] = self._vectors[BLOCK:]
        self._held -= BLOCK

    def _make_room_for_measures(self) -> None:
        room = len(self._cells)
        if room < WINDOW + BLOCK:
            grown = min(2 * room, WINDOW + BLOCK)
            cells = np.empty(grown, np.uint16)
            cells[:room] = self._cells
            measures = np.empty((MEASURES, grown), np.float16)
            measures[:, :room] = self._measures
            self._cells, self._measures = cells, measures
            self._count_bytes()
            return
        self._cells[:-BLOCK] = self._cells[BLOCK:]
        self._measures[:, :-BLOCK] = self._measures[:, BLOCK:]
        self._kept -= BLOCK
        self._measured -= BLOCK


def _windows(kept: int) -> tuple[int, ...]:
    """Lengths of the trailing windows to judge: what is recent weighs most in the shorter one."""
    longest = min(kept, WINDOW)
    return (SEGMENT, longest) if longest > SEGMENT else (longest,)
