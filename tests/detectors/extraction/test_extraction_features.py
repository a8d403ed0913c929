"""The measures against a reference that goes query by query."""

from __future__ import annotations

import numpy as np
from extraction_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.extraction.features import LAGS, NEAR, Measured, measure, statistics
from vauban.detectors.extraction.projection import Floats, unit


def one_by_one(vectors: Floats, start: int) -> Measured:
    rows = []
    for t in range(start, len(vectors)):
        similar = vectors @ vectors[t]
        lag = np.arange(len(vectors)) - t
        near = similar[(np.abs(lag) <= NEAR) & (lag != 0)]
        before = similar[(lag >= -NEAR) & (lag < 0)]
        far = similar[np.abs(lag) > NEAR]
        best = near.max(initial=-1.0)
        above = ((far >= best).sum() + 0.5) / (len(far) + 1)
        mean = far.mean() if len(far) else 0.0
        spread = max((far**2).mean() - mean**2 if len(far) else 0.0, 1e-4) ** 0.5
        lags = []
        for most in LAGS:
            within = similar[(np.abs(lag) <= most) & (lag != 0)]
            lags.append(((within.mean() if len(within) else 0.0) - mean) / spread)
        order = 1 - (1 - above) ** len(near)
        rows.append([order, best, before.max(initial=-1.0), far.max(initial=-1.0), *lags])
    return Measured.unstack(np.array(rows).T)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 60), st.data())
def test_measures_are_those_of_the_reference(seed: int, count: int, data: st.DataObject) -> None:
    vectors = World(topics=12, texts=8, seed=seed).script(count)
    start = data.draw(st.integers(0, count - 1))
    found, wanted = measure(vectors, start).stack(), one_by_one(vectors, start).stack()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


def test_statistics_stay_in_their_ranges() -> None:
    world = World()
    for rows in (world.script(300), world.person(300), np.repeat(world.script(1), 300, axis=0)):
        found = statistics(measure(unit(rows), 0), np.arange(300) % 50)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert (found[1:5] <= 2).all()


def test_a_script_has_no_sessions_and_a_person_has() -> None:
    world = World()
    script = statistics(measure(world.script(300), 0), np.arange(300))
    person = statistics(measure(world.person(300), 0), np.arange(300))
    assert script[0] < 1.5 < 2.5 < person[0]
    assert script[1] > 0.7 > 0.5 > person[1]
