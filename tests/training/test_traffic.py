"""Simulated callers, and the tables that are fitted on them."""

from __future__ import annotations

import numpy as np
import pytest

from vauban.detectors.extraction.accumulated import SEGMENT
from vauban.detectors.extraction.projection import unit
from vauban.detectors.extraction.reference import Reference
from vauban.training import traffic
from vauban.training.extraction import fit_tables, watch


@pytest.fixture(scope="module")
def pool() -> traffic.Pool:
    rng = np.random.default_rng(0)
    centres = np.repeat(unit(rng.normal(size=(20, 384))), 40, axis=0)
    texts = unit(centres + 0.6 * rng.normal(size=centres.shape) / np.sqrt(384))
    return traffic.Pool.of(texts, 20, rng)


@pytest.mark.parametrize("kind", traffic.PEOPLE)
def test_people_ask_as_much_as_they_should(pool: traffic.Pool, kind: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        asked = traffic.person(pool, 200, rng, kind)
        assert asked.shape == (200, 384)
        np.testing.assert_allclose(np.linalg.norm(asked, axis=1), 1.0, atol=1e-5)


def test_pieces_hold_every_query_once(pool: traffic.Pool) -> None:
    rows = pool.embeddings[:300]
    moved = traffic.in_pieces(rows, np.random.default_rng(2))
    assert not (moved == rows).all()
    assert {row.tobytes() for row in moved} == {row.tobytes() for row in rows}


def test_a_small_pool_is_small(pool: traffic.Pool) -> None:
    rows = traffic.small_pool(pool.embeddings, 500, np.random.default_rng(3))
    alike = rows @ rows.T > 0.9
    assert (alike.sum(axis=1) >= 2).mean() > 0.9


def test_few_of_the_people_it_was_fitted_on_are_suspect(
    pool: traffic.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tables say of the people they come from: a sixth is reached by a tenth of them."""
    monkeypatch.setattr("vauban.training.extraction.SEGMENTS", (2, 4, 8))
    rng = np.random.default_rng(4)
    projection = Reference.load().projection
    people = [watch(traffic.person(pool, 8 * SEGMENT, rng), projection) for _ in range(20)]
    fitted = fit_tables(projection, people, {})
    assert fitted.segments[0] > 1.9
    assert (np.diff(fitted.segments) > 0).all()
    assert (np.diff(fitted.mean_tails, axis=2) >= 0).all()
    reached = 0
    for person in people:
        found = max(
            fitted.suspect(fitted.arm_values(j.statistics, j.length), j.length) for j in person
        )
        reached += fitted.score(found) > 1 / 6
    assert reached <= 3
