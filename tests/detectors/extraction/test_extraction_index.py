from __future__ import annotations

import numpy as np
from extraction_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.extraction.index import SharedIndex
from vauban.detectors.extraction.projection import SCALE
from vauban.detectors.extraction.reference import Reference

PROJECTION = Reference.load().projection
SMALL = PROJECTION(World().script(2400))
TWIN_AT = 0.9


def index(max_queries: int = 4096, device: str = "cpu") -> SharedIndex:
    return SharedIndex(PROJECTION.centres, max_queries, TWIN_AT, device)


def test_cells_are_those_of_plain_numpy() -> None:
    found = index().add(SMALL, np.zeros(len(SMALL), np.int64))
    assert (found.cells == PROJECTION.cells(SMALL)).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50))
def test_twins_are_the_others_that_asked_nearly_the_same_before(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    rows = SMALL[rng.integers(60, size=120)]
    callers = rng.integers(8, size=120)
    shared, found = index(), []
    for start in range(0, 120, batch):
        part = slice(start, start + batch)
        found += shared.add(rows[part], callers[part].astype(np.int64)).twins
    products = rows.astype(int) @ rows.T.astype(int)
    for row, twins in enumerate(found):
        alike = products[row, :row] >= TWIN_AT * SCALE * SCALE
        same = (rows[:row] == rows[row]).all(axis=1)
        wanted = {int(c) for c in callers[:row][alike] if c != callers[row]}
        # Equal rows share their cell, so they are always found; others may lie in another cell.
        assert {int(c) for c in callers[:row][same] if c != callers[row]} <= set(twins) <= wanted


def test_the_index_stays_bounded() -> None:
    shared = index(max_queries=1000)
    for start in range(0, 2400, 240):
        shared.add(SMALL[start : start + 240], np.arange(240))
        assert len(shared) <= 1000
    assert len(shared) >= 500


def test_a_gpu_finds_the_same_where_there_is_one() -> None:
    """Without a GPU both are the CPU's index, and must still agree."""
    callers = np.arange(len(SMALL), dtype=np.int64) % 50
    one, two = index().add(SMALL, callers), index(device="auto").add(SMALL, callers)
    assert (one.cells == two.cells).all()
    assert one.twins == two.twins


def test_nothing_to_add() -> None:
    found = index().add(SMALL[:0], np.empty(0, np.int64))
    assert len(found.cells) == 0
    assert found.twins == []
