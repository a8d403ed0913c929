"""Comparing two result files."""

import json
import math

import pytest
from benchmarks.compare import NotComparable, compare, different_conditions, main, shift
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

FIVE = (1.0, 1.1, 1.2, 1.3, 1.4)
HIGH = tuple(value + 3 for value in FIVE)


def result(repeats, name="a", met=None, lower_is_better=True, benchmark="x", **provenance):
    ordered = sorted(repeats)
    row = {
        "name": name, "unit": "ms", "value": ordered[len(ordered) // 2], "repeats": list(repeats),
        "met": met, "lower_is_better": lower_is_better,
    }  # fmt: skip
    known = {"commit": "0123456789", **provenance}
    return {"benchmark": benchmark, "measures": [row], "provenance": known}


def verdict(before, after, **options):
    (change,) = compare(before, after, **options)
    return change.verdict


def test_overlapping_repeats_are_no_change():
    assert verdict(result(FIVE), result([1.35, 2.0, 2.1, 2.2, 2.3])) == "same"


def test_direction_follows_the_measure():
    assert verdict(result(FIVE), result(HIGH)) == "worse"
    assert verdict(result(HIGH), result(FIVE)) == "better"
    up = {"lower_is_better": False}
    assert verdict(result(FIVE, **up), result(HIGH, **up)) == "better"
    assert verdict(result(HIGH, **up), result(FIVE, **up)) == "worse"


def test_a_sure_shift_within_the_tolerance_is_no_change():
    before, after = result([100.0 + n / 10 for n in range(5)]), result([102.0] * 5)
    assert verdict(before, after, tolerance=0.05) == "same"
    assert verdict(before, after, tolerance=0.0) == "worse"


def test_few_repeats_say_nothing():
    assert verdict(result([1.0]), result([9.0])) == "too few repeats"
    assert verdict(result(FIVE[:4]), result(HIGH[:4])) == "too few repeats"
    assert verdict(result(FIVE[:4]), result(HIGH[:4]), confidence=0.95) == "worse"


def test_a_target_that_no_longer_holds_is_told_apart_from_noise():
    assert verdict(result([1.0, 2.0], met=True), result([1.5, 2.5], met=False)) == "lost"
    assert verdict(result(FIVE, met=False), result(FIVE, met=False)) == "same"


def test_a_measure_that_is_gone_is_told_and_a_new_one_is_no_change():
    changes = compare(result(FIVE, name="a"), result(FIVE, name="b"))
    assert [(change.name, change.verdict, change.bad) for change in changes] == [
        ("a", "missing", True)
    ]


samples = st.lists(st.floats(-100, 100), min_size=1, max_size=7)


@given(samples, samples, st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_turns_with_the_question(before, after, confidence):
    low, high = shift(before, after, confidence)
    assert low <= high
    assert shift(after, before, confidence) == pytest.approx((-high, -low))


@given(st.integers(2, 7), st.integers(2, 7), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_is_that_of_the_exact_test(first, second, confidence):
    """Without ties, a shift is in the interval just if the test does not reject it."""
    before = [math.sqrt(n + 2) for n in range(first)]
    after = [math.pi * n / 3 for n in range(second)]
    low, high = shift(before, after, confidence)
    for moved in (-5.0, -1.0, -0.3, 0.01, 0.4, 0.9, 2.0, 6.0):
        shifted = [value - moved for value in after]
        p = mannwhitneyu(before, shifted, method="exact").pvalue
        assert (low < moved < high) == (p > 1 - confidence)


def test_different_benchmarks_and_strangers_are_refused():
    with pytest.raises(NotComparable, match="can't be compared"):
        compare(result(FIVE), result(FIVE, benchmark="y"))
    for stranger in ({}, {"benchmark": "x", "measures": [{}]}, {"benchmark": "x", "measures": 3}):
        with pytest.raises(NotComparable):
            compare(stranger, result(FIVE))


def test_other_conditions_are_named():
    assert different_conditions(result(FIVE, python="3.11"), result(FIVE, python="3.12")) == [
        "python: 3.11 -> 3.12"
    ]
    assert different_conditions(result(FIVE), result(FIVE)) == []


def test_exit_codes(tmp_path, capsys):
    files = {}
    for name, content in (("low", result(FIVE)), ("high", result(HIGH)), ("odd", {})):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(content))
    low, high = str(files["low"]), str(files["high"])
    assert main([low, low]) == 0
    assert main([low, high]) == 1
    assert main([high, low]) == 0
    assert main([low, str(files["odd"])]) == 2
    assert main([low, str(tmp_path / "none.json")]) == 2
    assert "Traceback" not in capsys.readouterr().err
