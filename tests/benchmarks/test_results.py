"""The statistics that benchmark numbers rest on."""

import json

import pytest
from benchmarks.results import Measure, Result, percentile
from hypothesis import given
from hypothesis import strategies as st

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(values, st.floats(0, 1))
def test_percentile_lies_within_the_values(numbers, share):
    found = percentile(numbers, share)
    assert min(numbers) - 1e-6 <= found <= max(numbers) + 1e-6


@given(values)
def test_percentile_meets_both_ends_and_grows_with_the_share(numbers):
    assert percentile(numbers, 0) == min(numbers)
    assert percentile(numbers, 1) == max(numbers)
    assert percentile(numbers, 0.5) <= percentile(numbers, 0.95) + 1e-6


def test_percentile_of_known_values():
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([0, 10], 0.95) == pytest.approx(9.5)
    assert str(percentile([], 0.5)) == "nan"


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ({}, None),
        ({"at_most": 2.0}, True),
        ({"at_most": 1.9}, False),
        ({"at_least": 2.0}, True),
        ({"at_least": 2.1}, False),
    ],
)
def test_target_is_judged_on_the_median(limits, met):
    measure = Measure("x", "ms", (9.0, 2.0, 1.0), **limits)
    assert measure.value == 2.0
    assert measure.met is met


def test_result_carries_its_provenance(tmp_path):
    path = Result("x", {"repeats": 1}, measures=[Measure("a", "ms", (1.0,))]).write(tmp_path)
    record = json.loads(path.read_text())
    known = record["provenance"]
    assert known["command"]
    assert known["policy"]
    assert known["packages"]["torch"]
    assert known["hardware"]["cores"] >= 1
    assert record["measures"][0]["repeats"] == [1.0]
