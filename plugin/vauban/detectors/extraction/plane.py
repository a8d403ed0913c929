"""The reference's cells and a caller's queries on a plane, for people to look at.

The plane is spanned by the first two principal axes of the cells' centres. Nothing is judged by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.projection import Floats, Projection, Small, unit


@dataclass(frozen=True, slots=True)
class Plane:
    """`axes`: float32 [64, 2]. `cells`: float32 [cells, 2], where the centres lie."""

    axes: Floats
    cells: Floats

    @classmethod
    def of(cls, projection: Projection) -> Plane:
        """The same in every process that has the same reference."""
        centres = unit(projection.centres)
        axes = np.linalg.svd(centres - centres.mean(axis=0), full_matrices=False)[2][:2].T
        # An axis has no direction of its own: its largest part points up.
        largest = axes[np.abs(axes).argmax(axis=0), [0, 1]]
        axes = (axes * np.sign(largest)).astype(np.float32)
        return cls(axes, centres @ axes)

    def __call__(self, small: Small | NDArray[np.number]) -> Floats:
        """float32 [n, 2].

        :param small: int8 [n, 64], as `Projection` makes them.
        """
        places: Floats = unit(small) @ self.axes
        return places
