"""Numbers about scores: AUC, recall at a false-positive rate, calibration. numpy only.

Labels are 1 for attacks and 0 for benign rows; scores are in any range unless a function says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

RATES = (0.001, 0.005, 0.01, 0.02)
NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(scores: Floats, labels: Labels) -> float:
    """Area under the ROC curve: P(attack scores above benign), ties count half.

    :raises ValueError: there are no attacks, or no benign rows.
    """
    if not 0 < labels.sum() < len(labels):
        raise ValueError("AUC needs both attacks and benign rows")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    attacks = int(labels.sum())
    benign = len(labels) - attacks
    return float((ranks[labels == 1].sum() - attacks * (attacks + 1) / 2) / (attacks * benign))


def threshold_at(scores: Floats, labels: Labels, rate: float) -> float:
    """Smallest score t such that at most `rate` of benign rows have score >= t."""
    benign = np.sort(scores[labels == 0])[::-1]
    allowed = int(rate * len(benign))
    if allowed >= len(benign):
        return 0.0
    return float(np.nextafter(benign[allowed], np.inf))


def recall_at(scores: Floats, labels: Labels, rate: float) -> float:
    """Share of attacks at or above the threshold that has this false-positive rate."""
    return float((scores[labels == 1] >= threshold_at(scores, labels, rate)).mean())


def calibrate(logits: Floats, temperature: float, bias: float) -> Floats:
    """sigmoid(logit / temperature + bias), as the encoder computes it."""
    scores: Floats = 1 / (1 + np.exp(-np.clip(logits / temperature + bias, -500, 500)))
    return scores


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows with scores in [low, high): their number, mean score, and share of attacks."""

    low: float
    high: float
    rows: int
    score: float
    attacks: float


def reliability(scores: Floats, labels: Labels, bins: int = 15) -> list[Bin]:
    """Equally wide bins of scores in [0, 1] that have rows; 1.0 is in the last one."""
    bin_of = np.minimum((scores * bins).astype(int), bins - 1)
    table = []
    for b in range(bins):
        inside = bin_of == b
        if inside.any():
            shares = float(scores[inside].mean()), float(labels[inside].mean())
            table.append(Bin(b / bins, (b + 1) / bins, int(inside.sum()), *shares))
    return table


def calibration_error(scores: Floats, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error with equally wide bins (arXiv 1706.04599, section 2)."""
    gaps = (b.rows * abs(b.score - b.attacks) for b in reliability(scores, labels, bins))
    return sum(gaps) / len(scores)


def fit_temperature(logits: Floats, labels: Labels, steps: int = 100) -> tuple[float, float]:
    """Temperature and bias with the least log loss of sigmoid(logit / temperature + bias)."""
    x = np.stack([logits, np.ones_like(logits)], axis=1)
    w = np.array([1.0, 0.0])

    def loss(w: Floats) -> float:
        z = x @ w
        return float(np.mean(np.logaddexp(0, z) - labels * z))

    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        gradient = x.T @ (p - labels) / len(labels)
        curvature = (x.T * (p * (1 - p))) @ x / len(labels) + 1e-9 * np.eye(2)
        move = np.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(w - size * move) > loss(w) and size > 1e-6:
            size /= 2
        w = w - size * move
    if w[0] <= 1e-3:  # scores that say nothing; keep their order
        return 1e3, float(np.clip(w[1], -1e3, 1e3))
    return float(1 / w[0]), float(np.clip(w[1], -1e3, 1e3))


def bootstrap(
    measure: Callable[[Floats, Labels], float],
    scores: Floats,
    labels: Labels,
    *,
    seed: int = 0,
    rounds: int = 500,
) -> Interval:
    """Resample attacks and benign rows separately."""
    random = np.random.default_rng(seed)
    attacks, benign = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    values = []
    for _ in range(rounds):
        rows = np.concatenate(
            [random.choice(attacks, len(attacks)), random.choice(benign, len(benign))]
        )
        values.append(measure(scores[rows], labels[rows]))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(measure(scores, labels), float(low), float(high))


def share(hits: int, rows: int) -> Interval:
    """Share of hits with Wilson's interval, which is also right for few rows and shares near 0.

    :raises ValueError: there are no rows.
    """
    if rows < 1:
        raise ValueError("a share needs at least one row")
    z2 = 1.959964**2
    p = hits / rows
    centre = (p + z2 / (2 * rows)) / (1 + z2 / rows)
    half = (z2 * (p * (1 - p) + z2 / (4 * rows)) / rows) ** 0.5 / (1 + z2 / rows)
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def nearest(wanted: Floats, values: Floats, count: int) -> Labels:
    """For each of `wanted` the indices of its `count` nearest `values` (or of all, if fewer).

    :return: [wanted, count], nearest first; of equally near ones, the first in sorted order.
    """
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    count = min(count, len(values))
    width = min(2 * count, len(values))
    start = np.clip(np.searchsorted(sorted_values, wanted) - count, 0, len(values) - width)
    window = start[:, None] + np.arange(width)
    distance = np.abs(sorted_values[window] - wanted[:, None])
    best = np.argsort(distance, axis=1, kind="stable")[:, :count]
    indices: Labels = order[np.take_along_axis(window, best, axis=1)]
    return indices


def length_matched_auc(
    scores: Floats, labels: Labels, lengths: Labels, *, seed: int = 0, rounds: int = 500
) -> Interval:
    """P(an attack scores above a benign row of like length), ties count half.

    Each attack is compared with the ten benign rows that are nearest in log length, so a score
    that only tells long from short gets about 0.5. The interval resamples attacks.

    :raises ValueError: there are no attacks, or no benign rows.
    """
    if not 0 < labels.sum() < len(labels):
        raise ValueError("AUC needs both attacks and benign rows")
    logs = np.log1p(lengths.astype(np.float64))
    attack, benign = scores[labels == 1], scores[labels == 0]
    beside = benign[nearest(logs[labels == 1], logs[labels == 0], NEIGHBOURS)]
    won = ((attack[:, None] > beside) + 0.5 * (attack[:, None] == beside)).mean(axis=1)
    random = np.random.default_rng(seed)
    means = [random.choice(won, len(won)).mean() for _ in range(rounds)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(won.mean()), float(low), float(high))
