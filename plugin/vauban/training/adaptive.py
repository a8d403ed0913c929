"""Adaptive attacks: searches that see only scores try to bring a detection below the threshold.

Each search (`adaptive_moves.py`) is a coroutine that yields requests, is sent their scores, and
returns with how many changes it got through. So the searches of many rows run side by side and
share the encoder's batches, and every score that a search saw is counted as a query.

Covers: black-box search with scores, as an attacker has against a server that tells them
(`answer.details`) or a copy of the weights. Does not cover: gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from vauban.offline import Request
from vauban.training import evaluate
from vauban.training.evaluate import Floats, Interval

Score = Callable[[Sequence[Request]], Floats]
Search = Generator[Sequence[Request], Floats, int | None]
NewSearch = Callable[[str, float, np.random.Generator], Search]
"""(detected attack, threshold, random) -> a search for a version below the threshold."""

ROWS_AT_ONCE = 32  # searches side by side; bounds the candidates in memory


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to change an attack.

    `unit`: what a change is. `curve`: up to how many changes the share flipped is told for each.
    `normalised`: False for the comparison without the normaliser in front.
    """

    name: str
    variant: str
    unit: str
    search: NewSearch
    curve: int = 0
    normalised: bool = True


@dataclass(frozen=True, slots=True)
class AttackReport:
    """What an attack did to `detections` attacks with scores at or above the threshold.

    `mean_changes` and `mean_queries_flipped` are over the flipped ones, `mean_queries` over all.
    `flipped_within[n]`: share flipped with at most n + 1 changes.
    """

    attack: str
    variant: str
    unit: str
    normalised: bool
    detections: int
    flipped: int
    share: Interval | None
    mean_changes: float | None
    mean_queries: float | None
    mean_queries_flipped: float | None
    flipped_within: tuple[float, ...]


@dataclass(slots=True)
class _Run:
    search: Search
    queries: int = 0
    changes: int | None = None


def run_attack(
    attack: Attack,
    texts: Sequence[str],
    score: Score,
    *,
    threshold: float,
    seed: int,
    track: Callable[[int], None],
) -> AttackReport:
    """Attack every text; all of them are to be detections.

    :param score: one score per request, in order; it bounds its own batches.
    :param track: called with the number of texts that are done.
    """
    runs: list[_Run] = []
    for start in range(0, len(texts), ROWS_AT_ONCE):
        group = [
            _Run(attack.search(text, threshold, np.random.default_rng([seed, start + i])))
            for i, text in enumerate(texts[start : start + ROWS_AT_ONCE])
        ]
        _side_by_side(group, score)
        runs += group
        track(len(runs))
    return _report(attack, runs)


def _side_by_side(runs: Sequence[_Run], score: Score) -> None:
    """Run searches to their ends; each round scores the candidates of all that still go on."""
    waiting: list[tuple[_Run, Sequence[Request]]] = []
    for run in runs:
        _advance(run, None, waiting)
    while waiting:
        scores = score([request for _, candidates in waiting for request in candidates])
        answered, waiting = waiting, []
        at = 0
        for run, candidates in answered:
            run.queries += len(candidates)
            _advance(run, scores[at : at + len(candidates)], waiting)
            at += len(candidates)


def _advance(
    run: _Run, scores: Floats | None, waiting: list[tuple[_Run, Sequence[Request]]]
) -> None:
    try:
        candidates = next(run.search) if scores is None else run.search.send(scores)
    except StopIteration as end:
        run.changes = end.value
    else:
        waiting.append((run, candidates))


def _report(attack: Attack, runs: Sequence[_Run]) -> AttackReport:
    through = [run for run in runs if run.changes is not None]
    changes = [run.changes for run in runs if run.changes is not None]
    within = [sum(c <= most for c in changes) for most in range(1, attack.curve + 1)]
    return AttackReport(
        attack=attack.name,
        variant=attack.variant,
        unit=attack.unit,
        normalised=attack.normalised,
        detections=len(runs),
        flipped=len(changes),
        share=evaluate.share(len(changes), len(runs)) if runs else None,
        mean_changes=_mean(changes),
        mean_queries=_mean([run.queries for run in runs]),
        mean_queries_flipped=_mean([run.queries for run in through]),
        flipped_within=tuple(count / len(runs) for count in within) if runs else (),
    )


def _mean(numbers: Sequence[int]) -> float | None:
    return float(np.mean(numbers)) if numbers else None
