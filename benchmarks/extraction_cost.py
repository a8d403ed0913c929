"""What the extraction detector costs a request, and whether it stays flat as users grow.

A step's worth of requests (32) from as many different callers is observed, again and again, by a
detector that already holds a full 512-query window of each of its 10 to 100,000 users; the callers
ask in sessions, as people do. Time is the process's own CPU time, on one core. The baseline is
the same work with 10 users, in the same run. 100,000 users take 5 GB.

python -m benchmarks.extraction_cost [--quick]
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from benchmarks.growth import growth
from benchmarks.results import Measure, Result
from rich.console import Console

from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.profile import PROFILE_BYTES, WINDOW
from vauban.detectors.extraction.projection import Floats, unit
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Caller

USERS = (10, 100, 1_000, 10_000, 100_000)
QUICK_USERS = (10, 100, 1_000)
BATCH = 32
STEPS, QUICK_STEPS = 400, 100
TEMPLATES = 20
TOPICS, SESSION = 300, 6
AT_MOST_US = 60.0
MB = 1e6


@dataclass(frozen=True)
class Costs:
    """CPU microseconds a request, one per repeat; bytes of a user's state; the process's RSS."""

    request_us: tuple[float, ...]
    user_bytes: float
    process_mb: float


class Talk:
    """People's queries: sessions about one of many topics."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._topics = unit(self._rng.normal(size=(TOPICS, 384)))

    def of(self, count: int) -> Floats:
        topics = self._rng.integers(TOPICS, size=count // SESSION + 1).repeat(SESSION)[:count]
        noise = self._rng.normal(size=(count, 384)) * (0.8 / np.sqrt(384))
        return unit(self._topics[topics] + noise)


def filled(users: int, talk: Talk, reference: Reference) -> ExtractionDetector:
    """A detector with a full window of every user; windows are copies of a few."""
    policy = ExtractionPolicy(device="cpu", max_memory_bytes=users * PROFILE_BYTES * 2 + 2**20)
    detector = ExtractionDetector(policy, reference)
    for number in range(users):
        name = f"user-{number}"
        whole = number < TEMPLATES
        rows = talk.of(WINDOW if whole else 1)
        detector.observe([Query(Caller(name), row) for row in rows])
        if not whole:
            template = detector._callers[f"user-{number % TEMPLATES}"].profile
            detector._callers[name].profile = copy.deepcopy(template)
            detector._account(name, detector._callers[name])
    return detector


def costs_us(users: int, steps: int, repeats: int, reference: Reference) -> Costs:
    detector = filled(users, Talk(0), reference)
    callers = [Caller(f"user-{n * users // (BATCH * 4)}") for n in range(BATCH * 4)]
    times = []
    for seed in range(1, repeats + 1):
        talk = Talk(seed)
        sessions = [talk.of(steps + 1) for _ in callers]
        batches: list[Sequence[Query]] = [
            [
                Query(callers[(step % 4) * BATCH + n], sessions[(step % 4) * BATCH + n][step // 4])
                for n in range(BATCH)
            ]
            for step in range(steps)
        ]
        started = time.process_time()
        for batch in batches:
            detector.observe(batch)
        times.append((time.process_time() - started) / (steps * BATCH) * 1e6)
    return Costs(tuple(times), detector.nbytes / users, psutil.Process().memory_info().rss / MB)


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args(argv)
    users = QUICK_USERS if arguments.quick else USERS
    steps, repeats = (QUICK_STEPS, 2) if arguments.quick else (STEPS, 5)
    reference = Reference.load()
    result = Result("extraction_cost", {"batch": BATCH, "steps": steps, "window": WINDOW})
    found: dict[float, Costs] = {}
    for count in users:
        found[count] = costs_us(count, steps, repeats, reference)
        gc.collect()
    base = statistics.median(found[users[0]].request_us)
    for count, costs in found.items():
        bound = AT_MOST_US if count == 10_000 else None
        result.measures += [
            Measure(f"a request, {count:,} users", "µs", costs.request_us, baseline=base,
                    at_most=bound),
            Measure(f"a user, {count:,} users", "bytes", (costs.user_bytes,),
                    at_most=float(PROFILE_BYTES)),
            Measure(f"the process, {count:,} users", "MB", (costs.process_mb,)),
        ]  # fmt: skip
    fitted = growth({count: costs.request_us for count, costs in found.items()})
    result.notes.append(f"A request's cost by users: {fitted}")
    result.show(Console(width=130))
    result.write(suffix="-quick" if arguments.quick else "")
    return result


if __name__ == "__main__":
    main()
