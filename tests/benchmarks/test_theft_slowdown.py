"""What a copy has learned after each query, and how much later a hidden theft has learned it."""

from __future__ import annotations

import math

import numpy as np
from benchmarks.theft_slowdown import QUERIES, learned, times

from vauban.detectors.extraction.projection import unit

RNG = np.random.default_rng(0)
POOL = unit(RNG.standard_normal((50, 16)).astype(np.float32))


def test_a_copy_learns_more_with_every_query_until_it_has_seen_all() -> None:
    curve = learned(POOL, POOL)
    assert np.all(np.diff(curve) >= 0)
    assert curve[0] < 0.5
    assert math.isclose(curve[-1], 1, rel_tol=1e-5)


def test_questions_that_teach_nothing_put_it_off() -> None:
    target = float(learned(POOL, POOL)[9])
    useless = np.repeat(POOL[:1], 30, axis=0)
    late = learned(POOL, np.concatenate([useless, POOL]))
    assert times(late, target) == 40 / QUERIES
    assert times(learned(POOL, useless), target) == math.inf
