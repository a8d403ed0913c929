"""How the work of screening grows with a request's length and with how many share a pass.

What the guard does for a request, without servers: `Guard.read` (cleaning, decoding, cutting into
windows), as the API server does it, and the encoder's pass, as the engine does it, on one thread.
Time is the process's own CPU time, so that other work on the machine counts for little.

python -m benchmarks.screening_cost [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from benchmarks.growth import growth
from benchmarks.results import Measure, Result
from rich.console import Console

from vauban.detectors.encoder import Encoder
from vauban.detectors.windows import Windows
from vauban.guard import Guard
from vauban.policy import Policy
from vauban.standin import prose
from vauban.types import Origin, Segment

WORDS, QUICK_WORDS = (50, 100, 400, 1_600, 6_400), (100, 400, 1_600)
BATCHES, QUICK_BATCHES = (1, 8, 32), (1, 4, 16)
ONE_WINDOW = 100
"""Words that fill one window of the encoder, about."""

T = TypeVar("T")
Costs = dict[float, list[float]]
_seeds = itertools.count(1)


class Screen:
    def __init__(self) -> None:
        policy = Policy()
        self._guard = Guard(policy)
        self._encoder = Encoder.load(policy.encoder, "cpu")

    def read(self, words: int) -> tuple[Windows, float]:
        """The windows of a new text, and CPU milliseconds of reading it."""
        segment = Segment(prose(words, next(_seeds)), Origin.USER)
        reading, spent = _timed(lambda: self._guard.read([segment]))
        return reading.windows, spent

    def encode(self, batch: list[Windows]) -> float:
        """CPU milliseconds of a pass."""
        return _timed(lambda: self._encoder.encode(batch))[1]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    found = work()
    return found, 1e3 * (time.process_time() - started)


def take(screen: Screen, words: tuple[int, ...], batches: tuple[int, ...], repeats: int) -> tuple[
    Costs, Costs, Costs
]:  # fmt: skip
    """Reading and encoding by words; a request's share of a pass by batch. They take turns."""
    reading: Costs = {count: [] for count in words}
    encoding: Costs = {count: [] for count in words}
    sharing: Costs = {size: [] for size in batches}
    for _ in range(repeats):
        for count in words:
            windows, spent = screen.read(count)
            reading[count].append(spent)
            encoding[count].append(screen.encode([windows]))
        for size in batches:
            batch = [screen.read(ONE_WINDOW)[0] for _ in range(size)]
            sharing[size].append(screen.encode(batch) / size)
    return reading, encoding, sharing


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(argv).quick
    torch.set_num_threads(1)
    words, batches = (QUICK_WORDS, QUICK_BATCHES) if quick else (WORDS, BATCHES)
    repeats = 3 if quick else 5
    screen = Screen()
    screen.encode([screen.read(ONE_WINDOW)[0]])
    reading, encoding, sharing = take(screen, words, batches, repeats)
    result = Result("screening_cost", {"words": words, "batches": batches, "repeats": repeats})
    kinds = {
        "reading, {:,} words": reading, "encoder pass, {:,} words": encoding,
        f"a request's share of a pass, {{:,}} requests of {ONE_WINDOW} words": sharing,
    }  # fmt: skip
    for name, costs in kinds.items():
        for size, times in costs.items():
            result.measures.append(Measure(name.format(size), "ms", tuple(times)))
    for what, costs in (("Reading", reading), ("The encoder's pass", encoding)):
        result.notes.append(f"{what}, by words: {growth(costs)}")
    result.notes.append(f"A request's share of a pass, by requests in it: {growth(sharing)}")
    result.show(Console(width=130))
    result.write(suffix="-quick" if quick else "")
    return result


if __name__ == "__main__":
    main()
