"""What one step of the extraction detector takes on a GPU and on a CPU, and where it goes.

A step is 64 requests of as many callers. Measured are the whole detector, that holds a full window
of each of 10,000 users; its shared index alone, full, found and added to; and each of FAISS's calls
in it, with other ways to make them. Queries are the same 64 steps again and again, so that each
was asked before by others, or all "new". Time is wall clock, a GPU's work waited for. One thread.
Without a GPU that FAISS finds, the CPU's half is measured.

python -m benchmarks.extraction_gpu [--quick] [--users N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from benchmarks.extraction_cost import Talk, fill, filled
from benchmarks.results import Measure, Result, percentile
from rich.console import Console
from threadpoolctl import threadpool_limits

from vauban.detectors.extraction.detector import Query
from vauban.detectors.extraction.index import NEIGHBOURS, SharedIndex
from vauban.detectors.extraction.profile import PROFILE_BYTES
from vauban.detectors.extraction.projection import DIMENSIONS, Floats, Small
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Caller

STEP = 64
USERS, QUICK_USERS = 10_000, 1_000
STEPS, QUICK_STEPS = 300, 60
WARM_UP = 20
AGAIN = 64
"""Steps after which queries that were asked before come again."""
AT_MOST_US = 100.0
POLICY = ExtractionPolicy()

Step = Callable[[int], object]


def on_gpu() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def times_us(step: Step, steps: int, first: int = 0) -> list[float]:
    """Microseconds of each step. Steps are numbered from `first`, also those that warm up."""
    for number in range(first, first + WARM_UP):
        step(number)
    times = []
    for number in range(first + WARM_UP, first + WARM_UP + steps):
        started = time.perf_counter()
        step(number)
        times.append((time.perf_counter() - started) * 1e6)
    return times


def measures(
    name: str, step: Step, steps: int, repeats: int, at_most: float | None = None
) -> list[Measure]:
    """Median, 95th percentile and mean, each over the steps of one repeat."""
    runs = [times_us(step, steps, n * (WARM_UP + steps)) for n in range(repeats)]
    return [
        Measure(f"{name}, p50", "µs", tuple(map(statistics.median, runs)), at_most=at_most),
        Measure(f"{name}, p95", "µs", tuple(percentile(run, 0.95) for run in runs)),
        Measure(f"{name}, mean", "µs", tuple(map(statistics.fmean, runs))),
    ]


def detector_steps(device: str, users: int, reference: Reference, most_steps: int) -> list[Step]:
    """Queries that were asked before, and new ones for so many steps."""
    talk = Talk(1)
    detector = filled(users, talk, reference, users * PROFILE_BYTES * 2 + 2**20, device)

    def step(rows: Floats, number: int) -> object:
        asking = (np.arange(STEP) + number * STEP) % users
        queries = zip(asking.tolist(), rows[number % len(rows)], strict=True)
        return detector.observe([Query(Caller(f"user-{n}"), row) for n, row in queries])

    return [
        partial(step, talk.of(STEP * steps).reshape(steps, STEP, -1))
        for steps in (AGAIN, most_steps)
    ]


def index_steps(device: str, reference: Reference, most_steps: int) -> list[Step]:
    """The same for the index. Its younger generation grows; the second goes on where the first
    ends."""
    projection, talk = reference.projection, Talk(2)
    index = SharedIndex(projection.centres, POLICY.shared_queries, POLICY.twin_at, device)
    fill(index, projection, talk)
    callers = np.arange(STEP)

    def step(rows: Small, number: int) -> object:
        return index.add(rows[number % len(rows)], callers)

    return [
        partial(step, projection(talk.of(STEP * steps)).reshape(steps, STEP, -1))
        for steps in (AGAIN, most_steps)
    ]


class Calls:
    """Single calls of FAISS on one generation of the index, full."""

    def __init__(self, reference: Reference, gpu: bool) -> None:
        projection, talk = reference.projection, Talk(3)
        self.gpu = gpu
        self.room = POLICY.shared_queries // 2
        self.kept: Floats = projection(talk.of(self.room)).astype(np.float32)
        self.shared = SharedIndex(projection.centres, 2 * self.room, 0.9, "auto" if gpu else "cpu")
        self.index = self.filled()
        self.rows = self.kept[:STEP].copy()
        self.ids = np.arange(STEP)
        self.cells, self.nearness = self.shared._nearest(self.rows)
        self.first = np.ascontiguousarray(self.cells[:, 0])

    def filled(self) -> Any:
        index = self.shared._inverted_file()
        for part in np.split(self.kept, self.room // 2048):
            index.add_with_ids(part, np.arange(2048))
        return index

    def each(self) -> dict[str, Step]:
        """Those that take NumPy arrays, on either device."""
        room = np.empty((STEP, NEIGHBOURS), np.float32), np.empty((STEP, NEIGHBOURS), np.int64)
        add, flat = self.shared._inverted_file(), self.flat(half=False)
        arrays = tuple(faiss.swig_ptr(array) for array in (self.rows, self.ids, self.first))
        each: dict[str, Step] = {
            "nearest cells, NumPy": lambda _: self.shared._nearest(self.rows),
            "search": lambda _: self.index.search(self.rows, NEIGHBOURS),
            "search, cells told": lambda _: self.index.search_preassigned(
                self.rows, NEIGHBOURS, self.cells, self.nearness),
            "search, cells told, 8 neighbours": lambda _: self.index.search_preassigned(
                self.rows, 8, self.cells, self.nearness),
            "search, cells told, own room": lambda _: self.index.search_preassigned(
                self.rows, NEIGHBOURS, self.cells, self.nearness, D=room[0], I=room[1]),
            "search of all, no cells": lambda _: flat.search(self.rows, NEIGHBOURS),
            "add": lambda _: add.add_with_ids(self.rows, self.ids),
            "add, cells told": lambda _: add.add_core(STEP, *arrays),
        }  # fmt: skip
        return each

    def flat(self, *, half: bool) -> Any:
        if not self.gpu:
            index = faiss.IndexFlatIP(DIMENSIONS)
        else:
            config = faiss.GpuIndexFlatConfig()
            config.useFloat16 = half
            index = faiss.GpuIndexFlatIP(self.shared._resources, DIMENSIONS, config)
        index.add(self.kept)
        return index

    def each_on_gpu(self) -> dict[str, Step]:
        """Those whose arguments and results stay on the GPU, the results waited for."""
        on = {name: torch.from_numpy(array).cuda() for name, array in (
            ("rows", self.rows), ("ids", self.ids), ("cells", self.cells),
            ("nearness", self.nearness), ("first", self.first), ("kept", self.kept),
        )}  # fmt: skip
        products = torch.empty((STEP, NEIGHBOURS), device="cuda")
        found = torch.empty((STEP, NEIGHBOURS), dtype=torch.int64, device="cuda")
        flat, half, add = self.flat(half=False), self.flat(half=True), self.shared._inverted_file()
        kept_half, rows_half = on["kept"].half().T.contiguous(), on["rows"].half()
        least = POLICY.twin_at * 254.0**2
        results = _floats(products), _numbers(found)

        def product() -> object:
            alike = rows_half @ kept_half >= least
            return alike.any(dim=1).cpu()

        calls: dict[str, Callable[[], object]] = {
            "a kernel that does nothing": lambda: products.zero_(),
            "search, on the GPU": lambda: self.index.search_c(
                STEP, _floats(on["rows"]), NEIGHBOURS, *results),
            "search, cells told, on the GPU": lambda: self.index.search_preassigned_c(
                STEP, _floats(on["rows"]), NEIGHBOURS, _numbers(on["cells"]),
                _floats(on["nearness"]), *results, False),
            "search of all, no cells, on the GPU": lambda: flat.search_c(
                STEP, _floats(on["rows"]), NEIGHBOURS, *results),
            "search of all, no cells, float16, on the GPU": lambda: half.search_c(
                STEP, _floats(on["rows"]), NEIGHBOURS, *results),
            "add, cells told, on the GPU": lambda: add.add_core(
                STEP, _floats(on["rows"]), _numbers(on["ids"]), _numbers(on["first"])),
            "torch, product with all, float16": product,
        }  # fmt: skip

        def waited(call: Callable[[], object]) -> Step:
            def step(_: int) -> None:
                call()
                torch.cuda.synchronize()

            return step

        return {name: waited(call) for name, call in calls.items()}


def _floats(tensor: torch.Tensor) -> Any:
    return faiss.cast_integer_to_float_ptr(tensor.data_ptr())


def _numbers(tensor: torch.Tensor) -> Any:
    return faiss.cast_integer_to_idx_t_ptr(tensor.data_ptr())


def single_calls(result: Result, reference: Reference, device: str, steps: int) -> None:
    calls = Calls(reference, device == "GPU")
    each = calls.each() | (calls.each_on_gpu() if device == "GPU" else {})
    for name, step in each.items():
        try:
            result.measures += measures(f"{device}, {name}", step, steps, repeats=2)[:2]
        except RuntimeError as error:  # what one build of FAISS lacks
            result.notes.append(f"{device}, {name}: {str(error)[:200]}")


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--users", type=int, help="default: 10,000; with --quick 1,000")
    arguments = parser.parse_args(argv)
    users = arguments.users or (QUICK_USERS if arguments.quick else USERS)
    steps, repeats = (QUICK_STEPS, 2) if arguments.quick else (STEPS, 3)
    most = repeats * (WARM_UP + steps)
    threadpool_limits(1)  # of FAISS and of NumPy's BLAS, which the index alone does not hold back
    torch.set_num_threads(1)
    reference = Reference.load()
    result = Result("extraction_gpu", {
        "step": STEP, "steps": steps, "users": users, "shared_queries": POLICY.shared_queries,
    })  # fmt: skip
    for device, wanted in (("CPU", "cpu"), ("GPU", "auto")) if on_gpu() else (("CPU", "cpu"),):
        bound = AT_MOST_US if device == "GPU" else None
        for name, each in (
            (f"shared index, {STEP} found and added", index_steps(wanted, reference, most)),
            (f"detector, {STEP} requests, {users:,} users",
             detector_steps(wanted, users, reference, most)),
        ):  # fmt: skip
            for what, step in zip(("", ", new"), each, strict=True):
                result.measures += measures(f"{device}, {name}{what}", step, steps, repeats, bound)
        single_calls(result, reference, device, steps)
    if not on_gpu():
        result.notes.append("FAISS finds no GPU here")
    result.show(Console(width=130))
    result.write(suffix="-quick" if arguments.quick else "")
    return result


if __name__ == "__main__":
    main()
