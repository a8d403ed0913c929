"""What the extraction detector costs a request, and whether it stays flat as users grow.

A step's worth of requests (32) from as many different callers is observed, again and again, by a
detector that already holds a full 512-query window of each of its 10 to 100,000 users, and a shared
index as full as it is on the whole; the callers ask in sessions, as people do. Time is the
process's own CPU time, on one core. The baseline is the same work with 10 users, in the same run.
In the end as many users as before share a memory bound that does not hold them all, and every
request comes from a stranger.

100,000 users take 4.6 GB of windows and about 6 GB in all.

python -m benchmarks.extraction_cost [--quick] [--users N ...]
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Sequence

import numpy as np
from benchmarks.growth import growth
from benchmarks.results import Measure, Result
from rich.console import Console

from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.index import SharedIndex
from vauban.detectors.extraction.profile import PROFILE_BYTES, WINDOW
from vauban.detectors.extraction.projection import Floats, Projection, unit
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Caller

USERS = (10, 100, 1_000, 10_000, 100_000)
QUICK_USERS = (10, 100, 1_000, 10_000)
BATCH = 32
STEPS, QUICK_STEPS = 400, 100
TEMPLATES = 20
TOPICS, SESSION = 300, 6
AT_MOST_US = 60.0
UNKNOWN = 2**40
"""Number of the first of the callers who are forgotten, but not yet what they asked."""
MEMORY_BYTES = 2**28
"""The bound where users are forgotten."""

Repeats = tuple[float, ...]


class Talk:
    """People's queries: sessions about one of many topics."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._topics = unit(self._rng.normal(size=(TOPICS, 384)))

    def of(self, count: int) -> Floats:
        topics = self._rng.integers(TOPICS, size=count // SESSION + 1).repeat(SESSION)[:count]
        noise = self._rng.normal(size=(count, 384)) * (0.8 / np.sqrt(384))
        return unit(self._topics[topics] + noise)


def fill(index: SharedIndex, projection: Projection, talk: Talk) -> None:
    """Its older generation is full then, and its younger half full, as it is on the whole."""
    for _ in range(ExtractionPolicy().shared_queries * 3 // 4 // 2048):
        index.add(projection(talk.of(2048)), UNKNOWN + np.arange(2048))


def filled(
    users: int, talk: Talk, reference: Reference, most_bytes: int, device: str = "cpu"
) -> ExtractionDetector:
    """A detector that has heard a full window of every user; windows are copies of a few, and most
    of what its shared index holds was asked by others."""
    policy = ExtractionPolicy(device=device, max_memory_bytes=most_bytes)
    detector = ExtractionDetector(policy, reference)
    fill(detector._index, reference.projection, talk)
    for number in range(min(users, TEMPLATES)):
        caller = Caller(f"user-{number}")
        for part in np.split(talk.of(WINDOW), WINDOW // BATCH):
            detector.observe([Query(caller, row) for row in part])
    templates = [detector._callers[f"user-{n}"].profile for n in range(min(users, TEMPLATES))]
    for start in range(TEMPLATES, users, BATCH):
        names = [f"user-{number}" for number in range(start, min(start + BATCH, users))]
        rows = talk.of(len(names))
        detector.observe([Query(Caller(n), row) for n, row in zip(names, rows, strict=True)])
        for number, name in enumerate(names, start):
            known = detector._callers[name]
            known.profile = copy.deepcopy(templates[number % TEMPLATES])
            detector._account(name, known)
        detector._evict()
    return detector


def cost_us(detector: ExtractionDetector, users: int, steps: int, talk: Talk) -> float:
    """Microseconds a request. Who asks is spread over all users."""
    sessions = [talk.of(steps // 4 + 1) for _ in range(BATCH * 4)]
    callers = [Caller(f"user-{n * max(1, users // 128) % users}") for n in range(BATCH * 4)]
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
    return (time.process_time() - started) / (steps * BATCH) * 1e6


def strangers_us(detector: ExtractionDetector, steps: int, talk: Talk, name: str) -> float:
    """Microseconds a request where every caller is new, and one who was silent long is forgotten
    for them."""
    batches = [
        [Query(Caller(f"{name}-{step}-{n}"), row) for n, row in enumerate(talk.of(BATCH))]
        for step in range(steps)
    ]
    started = time.process_time()
    for batch in batches:
        detector.observe(batch)
    return (time.process_time() - started) / (steps * BATCH) * 1e6


def measure(users: int, steps: int, repeats: int, reference: Reference) -> tuple[Repeats, float]:
    """Microseconds a request of each repeat, and bytes a user."""
    talk = Talk(users)
    detector = filled(users, talk, reference, users * PROFILE_BYTES * 2 + 2**20)
    times = tuple(cost_us(detector, users, steps, talk) for _ in range(repeats))
    return times, detector.nbytes / users


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--users", type=int, nargs="+", help="default: 10 to 100,000")
    arguments = parser.parse_args(argv)
    users = arguments.users or (QUICK_USERS if arguments.quick else USERS)
    steps, repeats = (QUICK_STEPS, 2) if arguments.quick else (STEPS, 3)
    reference = Reference.load()
    result = Result("extraction_cost", {"batch": BATCH, "steps": steps, "window": WINDOW})
    base, costs = None, {}
    for count in users:
        times, size = measure(count, steps, repeats, reference)
        base = base or sorted(times)[repeats // 2]
        costs[float(count)] = times
        bound = AT_MOST_US if count == 10_000 else None
        result.measures += [
            Measure(f"a request, {count:,} users", "µs", times, baseline=base, at_most=bound),
            Measure(f"a user, {count:,} users", "bytes", (size,), at_most=float(PROFILE_BYTES)),
        ]
    most, talk = max(users), Talk(0)
    detector = filled(most, talk, reference, MEMORY_BYTES)
    names = [f"{most:,} users in {MEMORY_BYTES >> 20} MiB: " + what for what in (
        "a request of a stranger", "users remembered", "their windows",
    )]  # fmt: skip
    times = tuple(strangers_us(detector, steps, talk, str(n)) for n in range(repeats))
    result.measures += [
        Measure(names[0], "µs", times, baseline=base),
        Measure(names[1], "users", (float(len(detector)),), lower_is_better=False),
        Measure(names[2], "bytes", (float(detector.nbytes),), at_most=float(MEMORY_BYTES)),
    ]
    if len(costs) > 1:
        result.notes.append(f"A request's cost by users: {growth(costs)}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    result.measures.append(Measure("most memory of the process", "bytes", (peak,)))
    result.show(Console(width=130))
    path = result.write(suffix="-quick" if arguments.quick else "")
    from benchmarks.plots import draw_all

    draw_all(path)
    return result


if __name__ == "__main__":
    main()
