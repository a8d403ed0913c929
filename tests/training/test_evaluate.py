"""Metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from vauban.training import evaluate

cases = st.lists(
    st.tuples(st.integers(0, 8).map(lambda x: x / 8), st.integers(0, 1)), min_size=2, max_size=40
).filter(lambda rows: 0 < sum(label for _, label in rows) < len(rows))


def arrays(rows: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = zip(*rows, strict=True)
    return np.array(scores, np.float64), np.array(labels, np.int64)


@given(cases)
def test_auc_is_the_share_of_right_pairs(rows: list[tuple[float, int]]) -> None:
    scores, labels = arrays(rows)
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None]
    assert evaluate.auc(scores, labels) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())


@given(cases, st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_thresholds_keep_their_false_positive_rate(
    rows: list[tuple[float, int]], rate: float
) -> None:
    scores, labels = arrays(rows)
    at = evaluate.threshold_at(scores, labels, rate)
    benign = scores[labels == 0]
    assert (benign >= at).mean() <= rate
    lower = scores[scores < at]
    if lower.size:  # one step lower would break the promise
        assert (benign >= lower.max()).mean() > rate or lower.max() not in benign


def test_recall_at_a_rate() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.35])
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert evaluate.recall_at(scores, labels, 0.0) == 0.5
    assert evaluate.recall_at(scores, labels, 0.25) == 1.0


def test_temperature_recovers_a_known_calibration() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 6, 40_000)
    labels = (random.random(40_000) < evaluate.calibrate(logits, 2.5, -0.7)).astype(np.int64)
    temperature, bias = evaluate.fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.1)
    assert bias == pytest.approx(-0.7, abs=0.1)
    fitted = evaluate.calibrate(logits, temperature, bias)
    assert evaluate.calibration_error(fitted, labels) < 0.01


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_temperature_is_always_usable(sign: int) -> None:
    logits = sign * np.linspace(-5, 5, 50)
    labels = (np.linspace(-5, 5, 50) > 0).astype(np.int64)
    temperature, bias = evaluate.fit_temperature(logits, labels)
    assert 0 < temperature <= 1e3
    assert np.isfinite(bias)


def test_bootstrap_brackets_the_value() -> None:
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1], 200)
    scores = random.normal(labels, 1.0)
    found = evaluate.bootstrap(evaluate.auc, scores, labels, rounds=100)
    assert found.low < found.value < found.high
    assert found == evaluate.bootstrap(evaluate.auc, scores, labels, rounds=100)


@given(cases)
def test_auc_is_that_of_scikit_learn(rows: list[tuple[float, int]]) -> None:
    scores, labels = arrays(rows)
    assert evaluate.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc(label: int) -> None:
    scores, labels = np.array([0.1, 0.2]), np.array([label, label])
    for measure in (evaluate.auc, lambda s, y: evaluate.length_matched_auc(s, y, y)):
        with pytest.raises(ValueError, match="both attacks and benign"):
            measure(scores, labels)
    with pytest.raises(ValueError, match="at least one row"):
        evaluate.share(0, 0)


@given(cases, st.integers(1, 20))
def test_the_reliability_table_has_every_row_once(rows: list[tuple[float, int]], bins: int) -> None:
    scores, labels = arrays(rows)
    table = evaluate.reliability(scores, labels, bins)
    assert sum(b.rows for b in table) == len(rows)
    assert sum(b.rows * b.attacks for b in table) == pytest.approx(labels.sum())
    for b in table:
        assert b.low - 1e-12 <= b.score <= b.high + 1e-12


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_share_lies_in_its_interval(hits: int, rows: int) -> None:
    hits = min(hits, rows)
    found = evaluate.share(hits, rows)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.high - found.low > 0.0
    more = evaluate.share(10 * hits, 10 * rows)
    assert more.high - more.low < found.high - found.low


def test_wilson_interval_of_a_known_case() -> None:
    found = evaluate.share(0, 10)
    assert (found.low, found.high) == pytest.approx((0.0, 0.2775), abs=1e-4)


numbers = st.lists(st.integers(0, 30).map(float), min_size=1, max_size=30)


@given(numbers, numbers, st.integers(1, 12))
def test_nearest_values_are_the_nearest(
    wanted: list[float], values: list[float], count: int
) -> None:
    found = evaluate.nearest(np.array(wanted), np.array(values), count)
    assert found.shape == (len(wanted), min(count, len(values)))
    for want, indices in zip(wanted, found, strict=True):
        assert len(set(indices)) == len(indices)
        distances = sorted(abs(value - want) for value in values)
        assert [abs(values[i] - want) for i in indices] == distances[: len(indices)]


def test_a_score_that_only_knows_lengths_is_found_out() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [4000, 400])
    lengths = np.exp(random.normal(np.where(labels == 1, 6.0, 5.0), 1.0)).astype(np.int64)
    scores = lengths / (1 + lengths)
    assert evaluate.auc(scores, labels) > 0.7
    matched = evaluate.length_matched_auc(scores, labels, lengths)
    assert matched.low < 0.5 < matched.high + 0.02
    knows = evaluate.length_matched_auc(labels.astype(float), labels, lengths)
    assert knows.value == 1.0
