"""Comparing two result files."""

import pytest
from benchmarks.compare import compare, different_conditions


def result(*repeats, name="a", met=None, lower_is_better=True, benchmark="x", **provenance):
    ordered = sorted(repeats)
    row = {
        "name": name, "unit": "ms", "value": ordered[len(ordered) // 2], "repeats": list(repeats),
        "met": met, "lower_is_better": lower_is_better,
    }  # fmt: skip
    return {"benchmark": benchmark, "measures": [row], "provenance": provenance}


def verdict(before, after):
    (change,) = compare(before, after)
    return change.verdict


def test_overlapping_ranges_are_no_change():
    assert verdict(result(1.0, 2.0, 3.0), result(2.9, 4.0, 5.0)) == "same"


def test_direction_follows_the_measure():
    low, high = (1.0, 2.0), (3.0, 4.0)
    assert verdict(result(*low), result(*high)) == "worse"
    assert verdict(result(*high), result(*low)) == "better"
    up = {"lower_is_better": False}
    assert verdict(result(*low, **up), result(*high, **up)) == "better"
    assert verdict(result(*high, **up), result(*low, **up)) == "worse"


def test_a_target_that_no_longer_holds_is_told_apart_from_noise():
    assert verdict(result(1.0, 2.0, met=True), result(1.5, 2.5, met=False)) == "lost"
    assert verdict(result(1.0, 2.0, met=False), result(1.5, 2.5, met=False)) == "same"


def test_a_measure_compared_with_itself_is_the_same():
    (change,) = compare(result(1.0), result(1.0))
    assert (change.verdict, change.ratio, change.bad) == ("same", 1.0, False)


def test_zero_has_no_ratio_and_new_measures_are_left_out():
    (change,) = compare(result(0.0), result(1.0))
    assert change.ratio is None
    assert compare(result(1.0, name="a"), result(1.0, name="b")) == []


def test_different_benchmarks_are_refused():
    with pytest.raises(ValueError, match="can't be compared"):
        compare(result(1.0), result(1.0, benchmark="y"))


def test_other_conditions_are_named():
    assert different_conditions(result(1.0, python="3.11"), result(1.0, python="3.12")) == [
        "python: 3.11 -> 3.12"
    ]
    assert different_conditions(result(1.0), result(1.0)) == []
