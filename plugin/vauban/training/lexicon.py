"""Where in a long text an attack probably stands, judged by its word pairs.

Rows of the training files say that a text holds an attack, not where. Of a long text the windows
with the most suspicious pairs are shown to the encoder; the worst of them carries the label
(multiple-instance learning). Also finds the window of a harmless text most easily taken for an
attack, which teaches more than a random one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.windows import Ids

_BUCKETS = 1 << 19
_MAX_ODDS = 3.0


class Lexicon:
    """Smoothed log-odds, attack against benign, of hashed pairs of neighbouring tokens."""

    def __init__(self, log_odds: NDArray[np.float32]) -> None:
        self._log_odds = log_odds

    @classmethod
    def fit(cls, rows: Iterable[tuple[Ids, int]]) -> Lexicon:
        """:param rows: token ids of a text, and its label."""
        counts = np.zeros((2, _BUCKETS), np.float32)
        totals = np.zeros(2)
        for ids, label in rows:
            counts[label, np.unique(_pairs(ids))] += 1
            totals[label] += 1
        rates = (counts + 0.5) / (totals[:, None] + 1)
        odds = np.log(rates[1] / rates[0])
        odds[counts.sum(axis=0) < 2] = 0.0  # seen once: says nothing
        return cls(np.clip(odds, -_MAX_ODDS, _MAX_ODDS).astype(np.float32))

    def suspicion(self, ids: Ids) -> float:
        """Sum of the log-odds over the text; higher = more like an attack."""
        return float(self._log_odds[_pairs(ids)].sum())

    def likeliest(self, windows: Sequence[Ids], count: int) -> list[Ids]:
        """The `count` windows that look most like an attack."""
        if len(windows) <= count:
            return list(windows)
        order = sorted(range(len(windows)), key=lambda i: -self.suspicion(windows[i]))
        return [windows[i] for i in sorted(order[:count])]


def _pairs(ids: Ids) -> NDArray[np.int64]:
    wide = ids.astype(np.int64)
    return (wide[:-1] * 1_000_003 + wide[1:] * 7_919) % _BUCKETS
