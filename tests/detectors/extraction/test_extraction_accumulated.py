"""Evidence that accumulates: bounded, monotone, and the same wherever it is added up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vauban.detectors.extraction.accumulated import (
    ARMS,
    FORGOTTEN,
    NOTHING_YET,
    Accumulated,
)
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy

CPU = ExtractionPolicy(device="cpu")
REFERENCE = Reference.load()
VALUES = st.lists(st.floats(-100, 100, width=32), min_size=len(ARMS), max_size=len(ARMS)).map(
    lambda row: np.array(row, np.float32)
)


def after(segments: Sequence[Floats]) -> Accumulated:
    found = NOTHING_YET
    for values in segments:
        found = found.after(values)
    return found


@given(st.lists(VALUES, max_size=12), st.data())
def test_more_suspicion_never_lowers_it(segments: list[Floats], data: st.DataObject) -> None:
    less = REFERENCE.suspect_all(after(segments)).tail
    if segments:
        place = data.draw(st.integers(0, len(segments) - 1))
        segments[place] = segments[place] + np.abs(data.draw(VALUES))
    assert REFERENCE.suspect_all(after(segments)).tail >= less


def test_it_stays_bounded_and_forgets() -> None:
    worst = np.full(len(ARMS), np.inf, np.float32)
    found = after([worst] * 2000)
    assert found.segments <= 1 / FORGOTTEN
    assert np.isfinite(found.means).all()
    calm = found
    for _ in range(500):
        calm = calm.after(np.zeros(len(ARMS), np.float32))
    assert (calm.means < found.means / 100).all()


@given(st.lists(VALUES, max_size=12))
def test_counts_give_it_back(segments: list[Floats]) -> None:
    found = after(segments)
    again = Accumulated.of(found.counts())
    assert again.segments == found.segments
    np.testing.assert_allclose(again.sums, found.sums, rtol=1e-12)


def test_what_others_wrote_does_no_harm() -> None:
    """The store may hold anything by the name of a caller."""
    names = list(NOTHING_YET.counts())
    for numbers in itertools.product((-5.0, 0.0, 1e300, -1e300, np.nan, np.inf), repeat=2):
        found = Accumulated.of({"x": 1.0} | dict(zip(names, numbers, strict=False)))
        assert np.isfinite(REFERENCE.suspect_all(found).tail)
