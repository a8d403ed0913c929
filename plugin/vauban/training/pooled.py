"""How mingled honest accounts are that are linked: the tables of `extraction/pooled.py`.

Groups are firms: half of them people with nothing in common, half colleagues who share two to
twelve subjects. Their more suspect half is pooled, since only suspect accounts are linked. No
thief is simulated.

python -m vauban.training.pooled --data DIR [--cache FILE.npy] [--firms N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from vauban.detectors.extraction.pooled import ACCOUNTS, LEAST_QUERIES, POOLED_QUERIES, measure
from vauban.detectors.extraction.profile import Profile
from vauban.detectors.extraction.projection import Floats, Small
from vauban.detectors.extraction.reference import LEVELS, Reference
from vauban.policy import EncoderPolicy
from vauban.training import traffic
from vauban.training.extraction import embedder
from vauban.training.traffic import Generator
from vauban.training.traffic_texts import texts
from vauban.training.traffic_world import World, worlds

PEOPLE: Final = 80
"""Of a firm."""
QUERIES: Final = (16, 32, 64, 160)
"""So many each, one after the other."""
SHARED_SUBJECTS: Final = (2, 12)


def honest_mingling(world: World, reference: Reference, firms: int, seed: int) -> Floats:
    """How mingled groups of honest accounts are, at `LEVELS`: float32 [`ACCOUNTS`, levels]."""
    rng = np.random.default_rng(seed)
    found: list[list[float]] = [[] for _ in ACCOUNTS]
    for number in range(firms):
        suspects = _more_suspect(_firm(world, number % 2 == 1, rng), reference)
        for place, accounts in enumerate(ACCOUNTS):
            for queries in QUERIES:
                if accounts * queries < LEAST_QUERIES:
                    continue
                who = rng.choice(len(suspects), accounts, replace=False)
                each = POOLED_QUERIES // accounts
                parts = [suspects[n][max(0, queries - each) : queries] for n in who]
                labels = np.repeat(np.arange(accounts), [len(part) for part in parts])
                found[place].append(measure(np.concatenate(parts), labels)[0])
    return np.array([np.quantile(values, LEVELS) for values in found], np.float32)


def _firm(world: World, colleagues: bool, rng: Generator) -> Iterator[Floats]:
    pools = world.people
    if colleagues:
        count = int(rng.integers(SHARED_SUBJECTS[0], SHARED_SUBJECTS[1] + 1))
        pools = tuple(
            replace(pool, topics=rng.choice(pool.topics, count, replace=False)) for pool in pools
        )
    for _ in range(PEOPLE):
        yield traffic.person(pools[int(rng.integers(len(pools)))], max(QUERIES), rng)


def _more_suspect(people: Iterator[Floats], reference: Reference) -> list[Small]:
    """The queries of the half that looks less like people."""
    judged: list[tuple[float, Small]] = []
    for stream in people:
        small = reference.projection(stream)
        fine = reference.projection.fine_cells(small, reference.projection.cells(small))
        profile = Profile()
        for vector, cell in zip(small, fine.tolist(), strict=True):
            if profile.add(vector, cell):
                profile.judge(reference)
        judged.append((profile.worst.tail, small))
    judged.sort(key=lambda pair: -pair[0])
    return [small for _, small in judged[: len(judged) // 2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--firms", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    embed = embedder(EncoderPolicy(), lambda _done, _of: None)
    world = worlds(texts(given.data), embed, given.cache)["fit"]
    table = honest_mingling(world, Reference.load(), given.firms, given.seed)
    for accounts, row in zip(ACCOUNTS, table.astype(np.float64).round(4).tolist(), strict=True):
        sys.stdout.write(f"{accounts:3} {tuple(row)}\n")


if __name__ == "__main__":
    main()
