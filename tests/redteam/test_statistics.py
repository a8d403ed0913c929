"""Intervals hold what they promise, and agree with published values."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from vauban.redteam.statistics import (
    holm,
    lower_bound,
    quantile_upper_bound,
    slower_p,
    upper_bound,
    worse_rate_p,
)

METHODS = ("clopper_pearson", "wilson")
counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from(METHODS))
def test_bounds_enclose_the_rate(count: tuple[int, int], method: str) -> None:
    hits, trials = count
    low = lower_bound(hits, trials, 0.95, method)  # type: ignore[arg-type]
    high = upper_bound(hits, trials, 0.95, method)  # type: ignore[arg-type]
    assert 0 <= low <= hits / trials <= high <= 1


@given(counts)
def test_clopper_pearson_is_the_exact_test_turned_round(count: tuple[int, int]) -> None:
    hits, trials = count
    bound = upper_bound(hits, trials, 0.95, "clopper_pearson")
    if hits < trials:
        assert binom.cdf(hits, trials, bound) == pytest.approx(0.05, abs=1e-6)
    interval = binomtest(hits, trials).proportion_ci(0.90, "exact")
    assert bound == pytest.approx(interval.high)
    assert lower_bound(hits, trials, 0.95, "clopper_pearson") == pytest.approx(interval.low)


@given(counts)
def test_wilson_agrees_with_scipy(count: tuple[int, int]) -> None:
    hits, trials = count
    interval = binomtest(hits, trials).proportion_ci(0.90, "wilson")
    if hits < trials:
        assert upper_bound(hits, trials, 0.95, "wilson") == pytest.approx(interval.high)
    if hits:
        assert lower_bound(hits, trials, 0.95, "wilson") == pytest.approx(interval.low)


@given(counts, st.sampled_from(METHODS))
def test_one_more_win_never_lowers_the_bound(count: tuple[int, int], method: str) -> None:
    hits, trials = count
    if hits < trials:
        more = upper_bound(hits + 1, trials, 0.95, method)  # type: ignore[arg-type]
        assert more >= upper_bound(hits, trials, 0.95, method)  # type: ignore[arg-type]


def test_nothing_tried_shows_nothing() -> None:
    assert [upper_bound(0, 0, 0.95, m) for m in METHODS] == [1.0, 1.0]  # type: ignore[arg-type]
    assert worse_rate_p((0, 0), (5, 5)) == 1.0
    assert slower_p([], [1.0], 0.1) == 1.0
    assert quantile_upper_bound([], 0.95, 0.95) == math.inf


def test_a_risen_rate() -> None:
    assert worse_rate_p((2, 100), (20, 100)) < 0.001
    assert worse_rate_p((20, 100), (2, 100)) > 0.99
    assert worse_rate_p((2, 100), (3, 100)) > 0.3


def test_a_slower_guard() -> None:
    before = [10.0 + i % 5 for i in range(60)]
    assert slower_p(before, [v * 2 for v in before], 0.1) < 0.001
    assert slower_p(before, [v * 1.05 for v in before], 0.1) > 0.05


def test_a_bound_of_a_quantile_covers_it() -> None:
    choose = random.Random(1)  # noqa: S311 - a simulation
    covered = 0
    for _ in range(400):
        bound = quantile_upper_bound([choose.random() for _ in range(100)], 0.9, 0.95)
        covered += bound >= 0.9
    # Exactly 95% or a little more; 400 runs at 95% stay above 92% with probability 99.6%.
    assert covered / 400 > 0.92


def test_few_samples_bound_no_high_quantile() -> None:
    assert quantile_upper_bound([1.0] * 20, 0.95, 0.95) == math.inf
    assert quantile_upper_bound([1.0] * 100, 0.95, 0.95) == 1.0


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03], 0.05) == [True, False, False]
    assert holm([0.01, 0.02, 0.03], 0.05) == [True, True, True]
    assert holm([], 0.05) == []
