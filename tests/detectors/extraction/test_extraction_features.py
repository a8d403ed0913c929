"""The measures against a reference that goes query by query."""

from __future__ import annotations

import numpy as np
import pytest
from extraction_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.extraction.features import (
    LAGS,
    NEAR,
    SHORT_THREADS,
    STATISTICS,
    Measured,
    measure,
    statistics,
)
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
        last = similar[lag == -1].max(initial=-1.0)
        follow = min(((far >= last).sum() + 0.5) / (len(far) + 1), 1.0) if t else 1.0
        rows.append([order, best, before.max(initial=-1.0), far.max(initial=-1.0), follow, *lags])
    return Measured.unstack(np.array(rows).T)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 60), st.data())
def test_measures_are_those_of_the_reference(seed: int, count: int, data: st.DataObject) -> None:
    vectors = World(topics=12, texts=8, seed=seed).script(count)
    start = data.draw(st.integers(0, count - 1))
    found, wanted = measure(vectors, start).stack(), one_by_one(vectors, start).stack()
    # A small spread, by which lags are divided, magnifies the rounding of float32.
    np.testing.assert_allclose(found, wanted, rtol=5e-4, atol=2e-3)


def test_statistics_stay_in_their_ranges() -> None:
    world = World()
    for rows in (world.script(300), world.person(300), np.repeat(world.script(1), 300, axis=0)):
        (found,) = statistics(measure(unit(rows), 0), np.arange(300) % 50, [300])
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert (found[1:5] <= 2).all()


def test_a_script_has_no_sessions_and_a_person_has() -> None:
    world = World()
    (script,) = statistics(measure(world.script(300), 0), np.arange(300), [300])
    (person,) = statistics(measure(world.person(300), 0), np.arange(300), [300])
    assert script[0] < 1.5 < 2.5 < person[0]
    assert script[1] > 0.7 > 0.5 > person[1]


def named(measured: Measured) -> dict[str, float]:
    count = len(measured.near)
    (found,) = statistics(measured, np.arange(count), [count])
    return dict(zip(STATISTICS, found.tolist(), strict=True))


def sessions(*lengths: int) -> Measured:
    """Queries of sessions, each of which begins with something new."""
    count = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    before = np.full(count, 0.9)
    before[starts] = 0.1
    near = np.where(np.isin(np.arange(count), starts) & (np.append(before[1:], 0) < 0.5), 0.1, 0.9)
    order = np.where(near < 0.5, 0.9, 0.0)
    far = np.where(before < 0.5, 0.2, 0.8)
    follow = np.where(before < 0.5, 0.9, 0.01)
    lags = np.zeros((len(LAGS), count))
    return Measured.unstack(np.vstack([order, near, before, far, follow, lags]))


def test_sessions_are_counted() -> None:
    found = named(sessions(4, 1, 6, 2, 1, 1, 5))
    assert found["new_sessions"] == np.float32(4 / 20)
    assert found["new_share"] == np.float32(7 / 20)
    assert found["lone_share"] == np.float32(3 / 20)
    assert found["interrupts"] == 0.0
    assert found["short_threads"] == np.float32(15 / 20)
    spread = np.std([4, 6, 2, 5]) / (np.mean([4, 6, 2, 5]) - 1)
    assert found["session_spread"] == pytest.approx(spread, abs=1e-6)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_a_thread_is_short_by_its_length(lengths: list[int]) -> None:
    least, most = SHORT_THREADS
    short = sum(length for length in lengths if least <= length <= most)
    assert named(sessions(*lengths))["short_threads"] == np.float32(short / sum(lengths))


def test_who_follows_up_every_seed_has_short_threads() -> None:
    world = World(topics=120)
    seeds = world.rng.permutation(len(world.texts))
    chained = np.concatenate([world.texts[seed][: world.rng.integers(3, 6)] for seed in seeds])
    longer = np.concatenate([world.texts[seed][:12] for seed in seeds])
    shares = {
        kind: named(measure(rows[:384], 0))["short_threads"]
        for kind, rows in {
            "chained": chained, "longer": longer, "script": world.script(384),
        }.items()
    }  # fmt: skip
    assert shares["chained"] > 0.7 > 0.2 > max(shares["longer"], shares["script"])


def test_an_interruption_is_alone_in_a_session_that_goes_on() -> None:
    measured = sessions(9, 5)
    for alone, value in ((measured.near, 0.1), (measured.before, 0.1), (measured.order, 0.9)):
        alone[4] = value
    assert named(measured)["interrupts"] == np.float32(1 / 14)


def test_a_shorter_window_is_the_end_of_a_longer_one() -> None:
    measured = measure(World().person(200), 0)
    cells = np.arange(200) % 60
    short, whole = statistics(measured, cells, [64, 200])
    end = Measured.unstack(measured.stack()[:, -64:])
    np.testing.assert_array_equal(short, statistics(end, cells[-64:], [64])[0])
    np.testing.assert_array_equal(whole, statistics(measured, cells, [200])[0])
