"""The metric of the article that started this project, as printed: std/mean of the variances of
the ten largest principal components, a user banned above 0.85. Measured on realistic text it is
*low* for uniform exploration and high for clusters, exceeds 0.85 for nobody, and ranks broad
thieves below ordinary people (AUC 0.15 to 0.35 in the study this started from; `vauban evaluate
extraction` measures it beside ours). `extraction.metric: article` is for who wants to see that.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.projection import unit

ARTICLE_BAN: Final = 0.85
_COMPONENTS: Final = 10


def article_score(vectors: NDArray[np.number]) -> float:
    """std/mean of the top principal variances of a window [n, d]; 0 for fewer than 12 rows."""
    if len(vectors) < _COMPONENTS + 2:
        return 0.0
    rows = unit(vectors)
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:_COMPONENTS] ** 2
    mean = float(variances.mean())
    return float(variances.std()) / mean if mean > 0 else 0.0
