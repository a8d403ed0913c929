"""Fitting the lexical head: logistic regression on hashed tokens and token pairs.

Convex, quick on a CPU, and independent of the deep head, which is why the two together find more
than either. Features are weighted by inverse document frequency during the fit, so that common
words are held back by the regulariser; the weight is folded into the table that ships.

A linear model invites the good-word attack (Lowd & Meek, CEAS 2005): words that speak most for
harmlessness, added to an attack. So it is fitted twice, the second time with the calmest words of
the first added to half of the attacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from vauban.detectors.checkpoint import LEXICAL_ROW
from vauban.detectors.windows import Ids

BUCKETS = 1 << 20
_STRENGTH = 3.0  # inverse of the L2 penalty
_FEATURE_SCALE = 1 / 6  # brings a window's features to about unit length
_CALM_WORDS, _MOST_ADDED = 300, 6


def fit_lexical(
    windows: Iterable[tuple[Ids, int]], frame: tuple[int, int], seed: int = 0
) -> NDArray[np.float32]:
    """The table of `bert.LexicalHead`.

    :param windows: ids of one window without special tokens, and its label.
    :return: float32 [BUCKETS / LEXICAL_ROW, LEXICAL_ROW]
    """
    shown = list(windows)
    table = _fit(shown, frame, seed)
    random = np.random.default_rng(seed)
    calm = _calmest(table, [ids for ids, _ in shown])
    return _fit([(_soothed(ids, label, calm, random), label) for ids, label in shown], frame, seed)


def _fit(
    windows: Sequence[tuple[Ids, int]], frame: tuple[int, int], seed: int
) -> NDArray[np.float32]:
    indices = [buckets(ids, frame) for ids, _ in windows]
    labels = np.array([label for _, label in windows])
    lengths = np.array([len(row) for row in indices])
    weight = np.repeat(_FEATURE_SCALE / np.sqrt(lengths), lengths).astype(np.float32)
    counts = csr_matrix(
        (weight, np.concatenate(indices), np.concatenate([[0], np.cumsum(lengths)])),
        shape=(len(lengths), BUCKETS),
    )
    counts.sum_duplicates()
    seen = np.bincount(counts.indices, minlength=BUCKETS)
    rarity = np.log((1 + len(lengths)) / (1 + seen)) + 1
    rarity[seen < 2] = 0.0  # in one window only: can't carry over to others
    counts.data *= rarity[counts.indices].astype(np.float32)
    model = LogisticRegression(
        C=_STRENGTH, max_iter=150, class_weight="balanced", random_state=seed
    ).fit(counts, labels)
    table: NDArray[np.float32] = (model.coef_[0] * rarity * _FEATURE_SCALE).astype(np.float32)
    return table.reshape(-1, LEXICAL_ROW)


def _calmest(table: NDArray[np.float32], windows: Sequence[Ids]) -> Ids:
    """Of the tokens seen, those with the lowest weights by themselves."""
    tokens = np.unique(np.concatenate(windows))
    order = np.argsort(table.ravel()[_singles(tokens)], kind="stable")
    return tokens[order[:_CALM_WORDS]]


def _soothed(ids: Ids, label: int, calm: Ids, random: np.random.Generator) -> Ids:
    """An attack, every second time, with one to six calm words before or after."""
    if not label or random.random() < 0.5:
        return ids
    added = random.choice(calm, int(random.integers(1, _MOST_ADDED + 1)))
    return np.concatenate([ids, added] if random.random() < 0.75 else [added, ids])


def _singles(ids: Ids) -> NDArray[np.int64]:
    return (ids.astype(np.int64) * 40_503 + 11) % BUCKETS


def buckets(ids: Ids, frame: tuple[int, int]) -> NDArray[np.int64]:
    """As `bert.lexical_buckets`, for one window: all its tokens, then all its pairs."""
    framed = np.concatenate([frame[:1], ids, frame[1:]]).astype(np.int32)
    wide = framed.astype(np.int64)
    pair = (wide[:-1] * 1_000_003 + wide[1:] * 7_919) % BUCKETS
    return np.concatenate([_singles(framed), pair])
