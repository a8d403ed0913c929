"""Published statistics that the extraction detector is measured beside."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import shapiro

from vauban.detectors.extraction.projection import Floats, unit

_FEW: Final = 8


def coverage(cells: NDArray[np.integer]) -> float:
    """Share of different cells among the queries [n]."""
    return len(np.unique(cells)) / max(len(cells), 1)


def prada(vectors: NDArray[np.number]) -> float:
    """1 - W of Shapiro and Wilk over the nearest-previous distances (PRADA, arXiv 1805.02628);
    high is suspect there. 0 for fewer than 8 rows."""
    if len(vectors) < _FEW:
        return 0.0
    rows = unit(vectors)
    similar = np.tril(rows @ rows.T, -1) - np.triu(np.full((len(rows), len(rows)), 2.0))
    nearest = 1.0 - similar[1:].max(axis=1)
    if float(nearest.std()) == 0.0:
        return 1.0
    return float(1.0 - shapiro(nearest[:5000]).statistic)


def mmd(vectors: NDArray[np.number], reference: Floats, gamma: float = 2.0) -> float:
    """Biased squared maximum mean discrepancy to honest queries, Gaussian kernel (Gretton et al.
    2012).

    :param vectors: [n, d]. :param reference: unit length [m, d].
    """
    rows = unit(vectors)

    def kernel(a: Floats, b: Floats) -> float:
        return float(np.exp(-gamma * (2.0 - 2.0 * (a @ b.T))).mean())

    return kernel(rows, rows) + kernel(reference, reference) - 2.0 * kernel(rows, reference)
