"""Published detectors that ours is compared with; none of them is on by default.

`article_score` is the metric that started this project, as printed: std/mean of the variances of
the ten largest principal components, a user banned above 0.85. Measured on realistic text it is
*low* for uniform exploration and high for clusters, exceeds 0.85 for nobody, and ranks broad
thieves below ordinary people (AUC 0.15 to 0.35; `benchmarks/extraction.py`). It is kept as
`extraction.metric: article` for those who want to see that.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.projection import Floats, unit

ARTICLE_BAN: Final = 0.85
_COMPONENTS: Final = 10
_FEW: Final = 8


def article_score(vectors: NDArray[np.number]) -> float:
    """std/mean of the top principal variances of a window [n, d]; 0 for fewer than 12 rows."""
    if len(vectors) < _COMPONENTS + 2:
        return 0.0
    rows = unit(vectors)
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:_COMPONENTS] ** 2
    mean = float(variances.mean())
    return float(variances.std()) / mean if mean > 0 else 0.0


def coverage(cells: NDArray[np.integer]) -> float:
    """Share of different cells among the queries [n]."""
    return len(np.unique(cells)) / max(len(cells), 1)


def prada(vectors: NDArray[np.number]) -> float:
    """1 - W of Shapiro and Wilk over the nearest-previous distances (PRADA, arXiv 1805.02628);
    high is suspect there. 0 for fewer than 8 rows. Needs scipy (extra `train`)."""
    from scipy.stats import shapiro

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
