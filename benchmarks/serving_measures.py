"""From loads to numbers: what `serving` reports of each arm, and how costs grow."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.client import Load, Sent
from benchmarks.growth import growth
from benchmarks.results import Measure
from benchmarks.serving_arms import OFF, ON
from benchmarks.stages import Stages

TOKENS = 128
"""Length of the prompts where something else is varied: one window of the encoder."""


@dataclass(frozen=True)
class Cell:
    """`count` prompts of `tokens` tokens, that share of them attacks."""

    tokens: int
    load: Load
    count: int
    attacks: float = 0.0

    def __str__(self) -> str:
        attacks = f", {self.attacks:.0%} attacks" if self.attacks else ""
        return f"{self.tokens} tokens, {self.load}{attacks}"

    @property
    def tags(self) -> dict[str, Any]:
        load = {"clients": self.load.clients, "rate": self.load.rate}
        return {"tokens": self.tokens, "attacks": self.attacks, **load}


@dataclass(frozen=True)
class Shot:
    """One load on one arm. `cpu_ms`: processor milliseconds a request of all the arm's processes,
    which other work on the machine adds little to."""

    sent: Sent
    stages: Stages
    cpu_ms: float


Taken = Mapping[tuple[str, Cell], list[Shot]]
"""(arm, cell) to one entry per repeat."""

_MEDIANS: Mapping[str, Callable[[Sent], float]] = {
    "first token p50": lambda sent: sent.p(0.5, "first"),
    "first token p95": lambda sent: sent.p(0.95, "first"),
    "token gap p50": lambda sent: sent.p(0.5, "gap"),
    "whole answer p50": lambda sent: sent.p(0.5, "whole"),
}


def measures(taken: Taken) -> list[Measure]:
    found = list(_each(taken))
    return [*found, *_growths(found)]


def _each(taken: Taken) -> Iterator[Measure]:
    for (arm, cell), repeats in taken.items():
        for metric, of in _MEDIANS.items():
            yield _measure(metric, "ms", arm, cell, [of(shot.sent) for shot in repeats])
        cpu = [shot.cpu_ms for shot in repeats]
        yield _measure("CPU time a request", "ms", arm, cell, cpu)
        rates = [shot.sent.per_second for shot in repeats]
        yield _measure("answered", "requests/s", arm, cell, rates, lower_is_better=False)
        if arm != OFF:
            pairs = list(zip(repeats, taken[OFF, cell], strict=True))
            added = [_first(shot) - _first(off) for shot, off in pairs]
            yield _measure("first token added p50", "ms", arm, cell, added)
            cpu = [shot.cpu_ms - off.cpu_ms for shot, off in pairs]
            yield _measure("CPU time added a request", "ms", arm, cell, cpu)
        if cell.attacks and arm != OFF:
            yield from _blocked(arm, cell, [shot.sent for shot in repeats])
        yield from _stages(arm, cell, [shot.stages for shot in repeats])


def _first(shot: Shot) -> float:
    return shot.sent.p(0.5, "first")


def _measure(
    metric: str, unit: str, arm: str, cell: Cell, values: list[float], **more: Any
) -> Measure:
    tags = {"metric": metric, "arm": arm, **cell.tags, **more.pop("tags", {})}
    return Measure(f"{metric} ({arm}, {cell})", unit, tuple(values), tags=tags, **more)


def _blocked(arm: str, cell: Cell, sent: list[Sent]) -> Iterator[Measure]:
    for kind, lower_is_better in (("attacks", False), ("harmless", True)):
        counts: list[tuple[int, int]] = [getattr(one, kind) for one in sent]
        shares = [100 * blocked / max(1, of) for of, blocked in counts]
        yield _measure(
            f"{kind} blocked", "%", arm, cell, shares, lower_is_better=lower_is_better
        )  # fmt: skip


def _stages(arm: str, cell: Cell, stages: list[Stages]) -> Iterator[Measure]:
    for stage in stages[0].mean_ms:
        values = [one.mean_ms[stage] for one in stages if stage in one.mean_ms]
        yield _measure(f"{stage} mean", "ms", arm, cell, values)
    for size in stages[0].batches:
        shares = [100 * one.batches.get(size, 0.0) for one in stages]
        if any(shares) and arm == ON:
            yield _measure(
                f"requests in encoder batches up to {size}", "%", arm, cell, shares,
                lower_is_better=False, tags={"metric": "batch", "batch": size},
            )  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """What the guard adds to a request in milliseconds, by a size, one per repeat."""

    name: str
    costs: Mapping[float, Sequence[float]]


_BY_TOKENS, _BY_CLIENTS = "by prompt tokens (1 client)", f"by clients ({TOKENS} tokens)"
_CURVES = (
    ("first token added", "first token added p50", _BY_TOKENS),
    ("encoder pass", "encoder pass mean", _BY_TOKENS),
    ("CPU time added a request", "CPU time added a request", _BY_TOKENS),
    ("first token added", "first token added p50", _BY_CLIENTS),
    ("CPU time added a request", "CPU time added a request", _BY_CLIENTS),
)
"""What is fitted, of which metric, by which size."""


def curves(found: Sequence[Measure]) -> Iterator[Curve]:
    """How the guard's cost grows with the prompt and with the number of clients."""
    for what, metric, size in _CURVES:
        costs = {}
        for measure in found:
            tags = measure.tags
            if tags.get("metric") != metric or tags["arm"] != ON or tags["attacks"]:
                continue
            if size == _BY_TOKENS and tags["clients"] == 1:
                costs[float(tags["tokens"])] = measure.repeats
            elif size == _BY_CLIENTS and tags["tokens"] == TOKENS and tags["clients"]:
                costs[float(tags["clients"])] = measure.repeats
        yield Curve(f"{what}, {size}", costs)


def _growths(found: Sequence[Measure]) -> Iterator[Measure]:
    for curve in curves(found):
        repeats = min(map(len, curve.costs.values()), default=0)
        exponents = []
        for turn in range(repeats):
            points = {size: [costs[turn]] for size, costs in curve.costs.items()}
            if len(points) > 2 and all(cost[0] > 0 for cost in points.values()):
                exponents.append(growth(points).exponent)
        if exponents:
            yield Measure(f"exponent of growth: {curve.name}", "", tuple(exponents),
                          tags={"metric": "exponent"})  # fmt: skip


def fits(found: Sequence[Measure]) -> list[str]:
    """The exponent of each curve, with its interval.

    A difference of two noisy times may come out below 0 in a repeat, and has no logarithm then; the
    curve is fitted to the medians, which are few, so that its interval is wide.
    """
    lines = []
    for curve in curves(found):
        costs, how = curve.costs, ""
        if any(cost <= 0 for repeats in costs.values() for cost in repeats):
            costs = {size: [statistics.median(repeats)] for size, repeats in costs.items()}
            how = f", fitted to the medians of {len(costs)} sizes: some repeats are not above 0"
        try:
            lines.append(f"{curve.name}: {growth(costs)}{how}")
        except ValueError as error:
            lines.append(f"{curve.name}: not fitted, {error}")
    return lines


def false_alarms(taken: Taken) -> str:
    harmless = [
        shot.sent.harmless for (arm, _), repeats in taken.items() if arm != OFF for shot in repeats
    ]
    blocked, of = sum(stop for _, stop in harmless), sum(count for count, _ in harmless)
    return f"{blocked} of {of} harmless prompts were blocked, over all guarded arms."
