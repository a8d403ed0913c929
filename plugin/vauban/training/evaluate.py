"""Numbers about scores: AUC, recall at a false-positive rate, calibration. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

RATES = (0.001, 0.005, 0.01, 0.02)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(scores: Floats, labels: Labels) -> float:
    """Area under the ROC curve: P(attack scores above benign), ties count half."""
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


def calibration_error(scores: Floats, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error with equally wide bins (arXiv 1706.04599, section 2)."""
    bin_of = np.minimum((scores * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = bin_of == b
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    return float(error)


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
