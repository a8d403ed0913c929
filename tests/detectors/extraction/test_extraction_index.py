from __future__ import annotations

import numpy as np
from extraction_world import World
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vauban.detectors.extraction.index import FEW, NEIGHBOURS, PROBES, SharedIndex
from vauban.detectors.extraction.projection import SCALE, Small
from vauban.detectors.extraction.reference import Reference

PROJECTION = Reference.load().projection
SMALL = PROJECTION(World().script(2400))
TWIN_AT = 0.9


def index(max_queries: int = 4096, device: str = "cpu") -> SharedIndex:
    return SharedIndex(PROJECTION.centres, max_queries, TWIN_AT, device)


class PlainIndex:
    """The same in plain numpy: a list of what was asked, compared one by one."""

    def __init__(self, centres: Small, max_queries: int) -> None:
        self.centres = centres.astype(int)
        self.room = max_queries // 2
        self.old: list[tuple[Small, int, int]] = []
        self.young: list[tuple[Small, int, int]] = []

    def add(self, small: Small, callers: list[int]) -> tuple[list[int], list[list[int]]]:
        cells, twins = [], []
        while len(small):
            part = small[: self.room - len(self.young)].astype(int)
            kept = self.old + self.young
            for place, row in enumerate(part):
                probed = np.argsort(-(self.centres @ row), kind="stable")[:PROBES].tolist()
                same_step = [(other, callers[n]) for n, other in enumerate(part[:place])]
                before = [(other, caller) for other, caller, cell in kept if cell in probed]
                alike = [c for o, c in before + same_step if o @ row >= TWIN_AT * SCALE * SCALE]
                assume(len(alike) <= NEIGHBOURS)
                twins.append(sorted(set(alike) - {callers[place]}))
                cells.append(probed[0])
                self.young.append((row, callers[place], probed[0]))
            if len(self.young) == self.room:
                self.old, self.young = self.young, []
            small, callers = small[len(part) :], callers[len(part) :]
        return cells, twins


def agree(device: str, centres: Small, small: Small, callers: list[int], batch: int) -> int:
    """Both hear the same, in steps of `batch`. How many twins there were."""
    shared, plain, count = SharedIndex(centres, 100, TWIN_AT, device), PlainIndex(centres, 100), 0
    assert shared.on_gpu == (device != "cpu")
    for start in range(0, len(small), batch):
        part = slice(start, start + batch)
        found = shared.add(small[part], np.array(callers[part], np.int64))
        assert (found.cells.tolist(), found.twins) == plain.add(small[part], callers[part])
        count += sum(map(len, found.twins))
    return count


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 70))
def test_what_is_found_is_what_plain_numpy_finds(device: str, seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    callers = (rng.integers(8, size=240) + 2**40).tolist()
    assert agree(device, PROJECTION.centres, SMALL[rng.integers(60, size=240)], callers, batch)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 70))
def test_of_cells_equally_near_the_first_is_taken(device: str, seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    threefold = PROJECTION.centres[:20].repeat(3, axis=0)
    rows = SMALL[rng.integers(60, size=120)]
    assert agree(device, threefold, rows, rng.integers(8, size=120).tolist(), batch)


def test_cells_are_those_of_plain_numpy(device: str) -> None:
    found = index(device=device).add(SMALL, np.zeros(len(SMALL), np.int64))
    assert (found.cells == PROJECTION.cells(SMALL)).all()


def test_the_index_stays_bounded(device: str) -> None:
    shared = index(1000, device)
    for start in range(0, 2400, 240):
        shared.add(SMALL[start : start + 240], np.arange(240))
        assert len(shared) <= 1000
    assert len(shared) >= 500


def test_no_list_keeps_the_room_of_what_it_held_before() -> None:
    """Or memory grows with each cell that was asked about most for a while."""
    shared = index(2000)
    for cell in range(4):
        rows = np.repeat(PROJECTION.centres[cell : cell + 1], 1000, axis=0)
        shared.add(rows, np.zeros(1000, np.int64))
    held = [
        cell
        for one in (shared._old.invlists, shared._young.invlists)
        for cell in range(one.nlist)
        if one.get_ids(cell) is not None
    ]
    assert len(held) == 1


def test_a_large_step(device: str) -> None:
    """Two thousand at once, over the end of a generation."""
    callers = np.arange(len(SMALL), dtype=np.int64) % 50
    one, two = index(3000).add(SMALL, callers), index(3000, device).add(SMALL, callers)
    assert (one.cells == two.cells).all()
    assert one.twins == two.twins


def test_more_neighbours_than_a_cpu_looks_for_first(device: str) -> None:
    """Some queries of the step have a few, one as many as are looked at, and one has none."""
    shared = index(device=device)
    shared.add(SMALL[:1].repeat(NEIGHBOURS, axis=0), np.arange(NEIGHBOURS))
    shared.add(SMALL[1:2].repeat(FEW[-1], axis=0), np.arange(FEW[-1]))
    found = shared.add(SMALL[:3], np.array([0, FEW[-1], NEIGHBOURS]))
    assert found.twins == [list(range(1, NEIGHBOURS)), list(range(FEW[-1])), []]


def test_nothing_to_add(device: str) -> None:
    found = index(device=device).add(SMALL[:0], np.empty(0, np.int64))
    assert len(found.cells) == 0
    assert found.twins == []
