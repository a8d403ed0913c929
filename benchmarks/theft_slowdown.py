"""How much slower a theft becomes that hides: queries for as good a copy, against a plain theft.

What a copy has learned is taken to be how near a text of the thief's pool is to something that was
asked: the mean, over the pool, of the highest cosine. A plain thief asks texts of the pool in any
order. Sorting the same texts to imitate sessions costs nothing once all are asked, so it is not
here. Simulated callers of the world that the reference has not seen, see `vauban evaluate
extraction`.

python -m benchmarks.theft_slowdown --data DIR
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.results import Measure, Result
from rich.console import Console

from vauban.commands.progress import tracking
from vauban.detectors.extraction.projection import Floats
from vauban.policy import EncoderPolicy
from vauban.training.extraction import embedder
from vauban.training.traffic import diluted
from vauban.training.traffic_texts import texts
from vauban.training.traffic_world import World

WORLD, PLAIN = "held_out", "instructions"
QUERIES = 500
"""Of the plain thief, whose copy the others are to match."""
MOST_TIMES = 10
TEXTS = 2_000
THIEVES = 5
HIDDEN = {"half of it hidden in a person's talk": 0.5, "a quarter of it": 0.25}


def learned(pool: Floats, asked: Floats) -> Floats:
    """After each query [n]: the mean over a pool of the highest cosine with what was asked.

    :param pool, asked: unit length [m, d], [n, d].
    """
    nearest = np.full(len(pool), -1.0, np.float32)
    means = np.empty(len(asked), np.float32)
    for number, row in enumerate(asked):
        np.maximum(nearest, pool @ row, out=nearest)
        means[number] = nearest.mean()
    return means


def times(curve: Floats, target: float) -> float:
    """How many times `QUERIES` it takes to learn as much; infinite where it never does."""
    enough = np.flatnonzero(curve >= target)
    return float(enough[0] + 1) / QUERIES if len(enough) else float("inf")


def measures(world: World, seed: int = 0) -> list[Measure]:
    whole = world.thefts[PLAIN]
    found: dict[str, list[float]] = {}
    for number in range(THIEVES):
        rng = np.random.default_rng([seed, number])
        pool = whole[rng.permutation(len(whole))[:TEXTS]]
        target = float(learned(pool, world.theft(PLAIN, QUERIES, rng))[-1])
        most = QUERIES * MOST_TIMES
        kinds = {"every seed followed up": world.theft("chained", most, rng)}
        for kind, share in HIDDEN.items():
            count = min(most, int(0.9 * len(whole) / share))  # as long as there are new texts
            theft = whole[rng.permutation(len(whole))]
            kinds[kind] = diluted(world.person(count, rng), theft, share, rng)
        for kind, asked in kinds.items():
            found.setdefault(kind, []).append(times(learned(pool, asked), target))
    return [Measure(kind, "x", tuple(values), baseline=1.0) for kind, values in found.items()]


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="train, dev, dev_ood .jsonl[.gz]")
    arguments = parser.parse_args(argv)
    settings = {"queries": QUERIES, "texts": TEXTS, "thieves": THIEVES, "world": WORLD}
    result = Result("theft_slowdown", settings)
    with tracking(Console(stderr=True)) as track:
        here = [text for text in texts(arguments.data) if text.world == WORLD]
        embed = embedder(EncoderPolicy(), partial(track, "embedding"))
        rows = embed([text.text for text in here])
    result.measures = measures(World.of(WORLD, here, rows, seed=0))
    result.show(Console())
    return result


if __name__ == "__main__":
    main()
