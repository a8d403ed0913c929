"""The recent queries of all callers in one FAISS index: who asks what another caller asked.

An inverted file over the reference's coarse cells, with ids; on a GPU where FAISS was built for
one and finds one, else on the CPU, with the same results: vectors are whole numbers, so products
are exact (see `projection.py`), and FAISS is told the cells, which it would else choose by itself
where two are equally near. Two generations: the older is emptied whole when the younger is full,
so nothing is ever removed one by one and memory stays bounded.

Does not cover: neighbours in other cells than the nearest `PROBES`; of more than `NEIGHBOURS`
equally near ones, a CPU and a GPU may look at different ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.projection import DIMENSIONS, SCALE, Floats, Small

PROBES: Final = 2
NEIGHBOURS: Final = 32
"""Most neighbours of one query that are looked at."""
FEW: Final = (1, 8)
"""Neighbours that a CPU looks for first, in less time; for more only where all are alike. Most
queries are like nothing that was asked."""
BYTES_PER_QUERY: Final = DIMENSIONS * 4 + 8
"""On a GPU. On a CPU, where FAISS has products of whole numbers of a byte, `DIMENSIONS` + 8."""
GPU_SCRATCH_BYTES: Final = 2**26
"""FAISS's working memory on a GPU. Its own default, 1.5 GiB, is memory the model's server counts on
for itself."""

Pairs = tuple[NDArray[np.intp], NDArray[np.int64]]
"""Numbers of queries in a step, and of the caller of something nearly the same as each."""


@dataclass(frozen=True, slots=True)
class Found:
    """`cells`: coarse cell of each query [n]. `twins`: for each query the other callers' numbers
    that asked nearly the same before, without repetition."""

    cells: NDArray[np.int64]
    twins: list[list[int]]


class SharedIndex:
    """Not thread-safe.

    :param centres: int8 [cells, 64].
    :param max_queries: how many of the last queries are kept, at least half of it at any time.
    :param twin_at: cosine from which two queries are nearly the same (vectors are of length
        `SCALE` up to rounding).
    :param device: "auto" takes a GPU when there is one; "cpu" never.
    """

    def __init__(
        self, centres: Small, max_queries: int, twin_at: float, device: str = "auto"
    ) -> None:
        self._resources = _gpu_resources() if device == "auto" else None
        self._twin_product = twin_at * SCALE * SCALE
        self._room = max(1, max_queries // 2)
        self._centres = centres.astype(np.float32)
        self._columns = np.ascontiguousarray(self._centres.T)
        self._young: Any = self._inverted_file()
        self._old: Any = self._inverted_file()

    @property
    def on_gpu(self) -> bool:
        return self._resources is not None

    def __len__(self) -> int:
        return int(self._young.ntotal + self._old.ntotal)

    def add(self, small: Small, callers: NDArray[np.int64]) -> Found:
        """Find each query's cell and twins, and keep it. As if they came one by one. On one thread:
        for so little, FAISS's others would only wait, and take the time of a core to do it.

        :param small: int8 [n, 64].
        :param callers: number of the caller of each query [n], 0 or more.
        """
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            return self._add_all(small, callers)
        finally:
            faiss.omp_set_num_threads(threads)

    def _add_all(self, small: Small, callers: NDArray[np.int64]) -> Found:
        cells: list[NDArray[np.int64]] = []
        twins: list[list[int]] = []
        start = 0
        while start < len(small):
            end = min(len(small), start + self._room - self._young.ntotal)
            part = self._add(small[start:end], callers[start:end])
            cells.append(part.cells)
            twins += part.twins
            if self._young.ntotal >= self._room:
                self._old, self._young = self._young, self._emptied(self._old)
            start = end
        return Found(np.concatenate(cells) if cells else np.empty(0, np.int64), twins)

    def _add(self, small: Small, callers: NDArray[np.int64]) -> Found:
        rows = small.astype(np.float32)
        probed, nearness = self._nearest(rows)
        row, column = np.nonzero(rows @ rows.T >= self._twin_product)
        earlier = column < row
        pairs = [(row[earlier], callers[column[earlier]])]
        for index in (self._old, self._young):
            if index.ntotal:
                pairs += self._alike(index, rows, probed, nearness)
        cells = np.ascontiguousarray(probed[:, 0])
        self._put(rows, callers, cells)
        return Found(cells, _others(pairs, callers))

    def _alike(
        self, index: Any, rows: Floats, probed: NDArray[np.int64], nearness: Floats
    ) -> Iterator[Pairs]:
        """Rows and the callers of what is nearly the same as they, of the nearest `NEIGHBOURS`."""
        places = np.arange(len(rows))
        for most in (NEIGHBOURS,) if self.on_gpu else (*FEW, NEIGHBOURS):
            products, found = index.search_preassigned(
                rows[places], min(most, int(index.ntotal)), probed[places], nearness[places]
            )
            alike = products >= self._twin_product
            row, column = np.nonzero(alike)
            yield places[row], found[row, column]
            places = places[alike[:, -1]]
            if not len(places):
                return

    def _nearest(self, rows: Floats) -> tuple[NDArray[np.int64], Floats]:
        """The nearest `PROBES` cells of each row [n, PROBES], the nearest first, and their
        products. Of several that are equally near, the first: FAISS would take any of them."""
        products = rows @ self._columns
        places = np.arange(len(rows))
        probed = np.empty((len(rows), PROBES), np.int64)
        nearness = np.empty((len(rows), PROBES), np.float32)
        for probe in range(PROBES):
            best = products.argmax(axis=1)
            probed[:, probe], nearness[:, probe] = best, products[places, best]
            products[places, best] = -np.inf
        return probed, nearness

    def _put(self, rows: Floats, callers: NDArray[np.int64], cells: NDArray[np.int64]) -> None:
        ids = np.ascontiguousarray(callers, dtype=np.int64)
        self._young.add_core(len(rows), *(faiss.swig_ptr(array) for array in (rows, ids, cells)))

    def _inverted_file(self) -> Any:
        shape = _flat(self._centres), DIMENSIONS, len(self._centres)
        if self._resources is None:
            # A quarter of the memory to go through, and the same products: it rounds nothing.
            whole = faiss.ScalarQuantizer.QT_8bit_direct_signed
            index: Any = faiss.IndexIVFScalarQuantizer(
                *shape, whole, faiss.METRIC_INNER_PRODUCT, False
            )
        else:
            index = faiss.IndexIVFFlat(*shape, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = PROBES
        index.is_trained = True
        if self._resources is None:
            return index
        return self._emptied(faiss.index_cpu_to_gpu(self._resources, 0, index))

    def _emptied(self, index: Any) -> Any:
        if not self.on_gpu:
            return self._inverted_file()  # each list of the old one keeps the most room it ever had
        index.reset()
        # Room for all now, or lists would move to a larger place in the middle of a step.
        index.reserveMemory(self._room)
        return index


def _others(pairs: Sequence[Pairs], callers: NDArray[np.int64]) -> list[list[int]]:
    """For each query the callers it is paired with but its own, in order."""
    row, found = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    others = found != callers[row]
    each: list[list[int]] = [[] for _ in callers]
    for place, caller in sorted({*zip(row[others].tolist(), found[others].tolist(), strict=True)}):
        each[place].append(caller)
    return each


def _flat(rows: Floats) -> Any:
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(np.ascontiguousarray(rows))
    return index


def _gpu_resources() -> Any:
    """FAISS's GPU resources, or None: a CPU build, or no GPU."""
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_SCRATCH_BYTES)
    resources.setPinnedMemory(0)  # only for copies far larger than a step's
    return resources
