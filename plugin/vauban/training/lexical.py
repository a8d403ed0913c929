"""Fitting the lexical head: logistic regression on hashed tokens and token pairs.

Convex, quick on a CPU, and independent of the deep head, which is why the two together find more
than either. Features are weighted by inverse document frequency during the fit, so that common
words are held back by the regulariser; the weight is folded into the table that ships.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from vauban.detectors.checkpoint import LEXICAL_ROW
from vauban.detectors.windows import Ids

BUCKETS = 1 << 20
_STRENGTH = 3.0  # inverse of the L2 penalty
_FEATURE_SCALE = 1 / 6  # brings a window's features to about unit length


def fit_lexical(
    windows: Iterable[tuple[Ids, int]], frame: tuple[int, int], seed: int = 0
) -> NDArray[np.float32]:
    """The table of `bert.LexicalHead`.

    :param windows: ids of one window without special tokens, and its label.
    :return: float32 [BUCKETS / LEXICAL_ROW, LEXICAL_ROW]
    """
    indices: list[NDArray[np.int64]] = []
    labels: list[int] = []
    for ids, label in windows:
        indices.append(buckets(ids, frame))
        labels.append(label)
    lengths = np.array([len(row) for row in indices])
    flat = np.concatenate(indices)
    weight = np.repeat(_FEATURE_SCALE / np.sqrt(lengths), lengths).astype(np.float32)
    counts = csr_matrix(
        (weight, flat, np.concatenate([[0], np.cumsum(lengths)])),
        shape=(len(lengths), BUCKETS),
    )
    counts.sum_duplicates()
    seen = np.bincount(counts.indices, minlength=BUCKETS)
    rarity = np.log((1 + len(lengths)) / (1 + seen)) + 1
    rarity[seen < 2] = 0.0  # in one window only: can't carry over to others
    counts.data *= rarity[counts.indices].astype(np.float32)
    model = LogisticRegression(
        C=_STRENGTH, max_iter=150, class_weight="balanced", random_state=seed
    ).fit(counts, np.array(labels))
    table: NDArray[np.float32] = (model.coef_[0] * rarity * _FEATURE_SCALE).astype(np.float32)
    return table.reshape(-1, LEXICAL_ROW)


def buckets(ids: Ids, frame: tuple[int, int]) -> NDArray[np.int64]:
    """As `bert.lexical_buckets`, for one window: all its tokens, then all its pairs."""
    framed = np.concatenate([frame[:1], ids, frame[1:]]).astype(np.int64)
    single = (framed * 40_503 + 11) % BUCKETS
    pair = (framed[:-1] * 1_000_003 + framed[1:] * 7_919) % BUCKETS
    return np.concatenate([single, pair])
