"""Embeddings made small: 64 whole numbers a query, and the cell of space it falls into.

Whole numbers on purpose: their products are exact in float32, so that a CPU, a GPU and plain
numpy find the same neighbours, whatever the order they add in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Small = NDArray[np.int8]

DIMENSIONS: Final = 64
SCALE: Final = 254.0
FINE: Final = 8
"""Fine cells in one coarse cell: three fixed directions, two sides each."""


@dataclass(frozen=True, slots=True)
class Projection:
    """`matrix`: float32 [embedding, 64], orthonormal columns. `centres`: int8 [cells, 64], of
    equal length. `sides`: float32 [64, 3]."""

    matrix: Floats
    centres: Small
    sides: Floats
    _matrix: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _centres: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_matrix", self.matrix.astype(np.float64))
        object.__setattr__(self, "_centres", unit(self.centres))

    def __call__(self, embeddings: Floats) -> Small:
        """int8 [n, 64]; directions only, so a scaled embedding is the same query.

        :param embeddings: float32 [n, embedding].
        """
        # In double precision, or what is rounded would depend on how many are multiplied at once.
        small = embeddings.astype(np.float64) @ self._matrix
        lengths = np.sqrt((small * small).sum(axis=1))
        scaled = small * (SCALE / np.maximum(lengths, 1e-6))[:, None]
        whole: Small = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
        return whole

    def cells(self, small: Small) -> NDArray[np.intp]:
        """The coarse cell of each row [n]: the centre with the largest product, in plain numpy.

        `index.py` does the same with FAISS; this is what that is tested against.
        """
        products = small.astype(np.float32) @ self.centres.astype(np.float32).T
        found: NDArray[np.intp] = products.argmax(axis=1)
        return found

    def fine_cells(self, small: Small, cells: NDArray[np.integer]) -> NDArray[np.uint16]:
        """Coarse cells cut into `FINE` parts, uint16 [n]."""
        offset = unit(small) - self._centres[cells]
        part = (offset @ self.sides > 0) @ np.array([1, 2, 4])
        fine: NDArray[np.uint16] = (cells * FINE + part).astype(np.uint16)
        return fine


def unit(rows: NDArray[np.number]) -> Floats:
    """Rows scaled to length 1; a row of zeros stays."""
    rows = rows.astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    scaled: Floats = rows / np.maximum(lengths, 1e-6)[:, None]
    return scaled
