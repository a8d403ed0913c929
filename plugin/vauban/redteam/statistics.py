"""Intervals and tests for counted outcomes. All bounds are one-sided: what the gate asks is
whether a rate is surely not above a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Method = Literal["clopper_pearson", "wilson"]


def upper_bound(hits: int, trials: int, confidence: float, method: Method) -> float:
    """The rate that the true one exceeds with probability at most 1 - `confidence`.

    Clopper and Pearson (Biometrika 26, 1934) never promise too much; Wilson (JASA 22, 1927) is
    right on average. Without a trial it is 1.
    """
    if trials == 0 or hits == trials:
        return 1.0
    if method == "clopper_pearson":
        from scipy.stats import beta

        return float(beta.ppf(confidence, hits + 1, trials - hits))
    return _wilson(hits, trials, confidence, +1)


def lower_bound(hits: int, trials: int, confidence: float, method: Method) -> float:
    """The rate that the true one is below with probability at most 1 - `confidence`."""
    if trials == 0 or hits == 0:
        return 0.0
    if method == "clopper_pearson":
        from scipy.stats import beta

        return float(beta.ppf(1 - confidence, hits, trials - hits + 1))
    return _wilson(hits, trials, confidence, -1)


def _wilson(hits: int, trials: int, confidence: float, side: int) -> float:
    from scipy.stats import norm

    z = float(norm.ppf(confidence))
    rate = hits / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return min(1.0, max(0.0, (centre + side * spread) / (1 + z * z / trials)))


def worse_rate_p(before: tuple[int, int], now: tuple[int, int]) -> float:
    """Fisher's exact test, one-sided: how likely a rise this large is when nothing changed.

    :param before: hits and trials; `now` likewise.
    """
    from scipy.stats import fisher_exact

    (hits0, trials0), (hits1, trials1) = before, now
    if not trials0 or not trials1:
        return 1.0
    table = [[hits1, trials1 - hits1], [hits0, trials0 - hits0]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def slower_p(before: Sequence[float], now: Sequence[float], margin: float) -> float:
    """Mann and Whitney's test, one-sided: how likely `now` is this much above `before` times
    1 + `margin` when it is not."""
    from scipy.stats import mannwhitneyu

    if not before or not now:
        return 1.0
    raised = [value + abs(value) * margin for value in before]
    return float(mannwhitneyu(now, raised, alternative="greater").pvalue)


def quantile_upper_bound(samples: Sequence[float], quantile: float, confidence: float) -> float:
    """An upper bound of a quantile from order statistics, free of a distribution.

    The k-th smallest value is above the quantile with probability P(Binomial(n, q) < k); infinite
    when even the largest value is not at `confidence`.
    """
    from scipy.stats import binom

    ordered = sorted(samples)
    count = len(ordered)
    if not count:
        return math.inf
    rank = int(binom.ppf(confidence, count, quantile)) + 1
    return ordered[rank - 1] if rank <= count else math.inf


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of several tests reject at a family-wise error of `alpha` (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = [False] * len(p_values)
    for done, index in enumerate(order):
        if p_values[index] > alpha / (len(p_values) - done):
            break
        rejected[index] = True
    return rejected
