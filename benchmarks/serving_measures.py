"""From loads to numbers: what `serving` reports of each arm, and how costs grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def measures(taken: Taken) -> Iterator[Measure]:
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
    yield from _growths(taken)


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
    costs: Mapping[float, list[float]]


def curves(taken: Taken) -> Iterator[Curve]:
    """How the guard's cost grows with the prompt and with the number of clients."""
    first, passes, length_cpu, crowd_cpu = {}, {}, {}, {}
    for (arm, cell), repeats in taken.items():
        if arm != ON or cell.attacks or not cell.load.clients:
            continue
        pairs = list(zip(repeats, taken[OFF, cell], strict=True))
        cpu = [on.cpu_ms - off.cpu_ms for on, off in pairs]
        if cell.load.clients == 1:
            tokens = float(cell.tokens)
            first[tokens] = [_first(on) - _first(off) for on, off in pairs]
            passes[tokens] = [on.stages.mean_ms.get("encoder pass", 0.0) for on in repeats]
            length_cpu[tokens] = cpu
        if cell.tokens == TOKENS:
            crowd_cpu[float(cell.load.clients)] = cpu
    yield Curve("first token added, by prompt tokens (1 client)", first)
    yield Curve("encoder pass, by prompt tokens (1 client)", passes)
    yield Curve("CPU time added a request, by prompt tokens (1 client)", length_cpu)
    yield Curve(f"CPU time added a request, by clients ({TOKENS} tokens)", crowd_cpu)


def _growths(taken: Taken) -> Iterator[Measure]:
    for curve in curves(taken):
        repeats = min(map(len, curve.costs.values()))
        exponents = []
        for turn in range(repeats):
            points = {size: [costs[turn]] for size, costs in curve.costs.items()}
            if len(points) > 2 and all(cost[0] > 0 for cost in points.values()):
                exponents.append(growth(points).exponent)
        if exponents:
            yield Measure(f"exponent of growth: {curve.name}", "", tuple(exponents),
                          tags={"metric": "exponent"})  # fmt: skip


def notes(taken: Taken) -> list[str]:
    found = []
    for curve in curves(taken):
        try:
            found.append(f"{curve.name}: {growth(curve.costs)}")
        except ValueError as error:
            found.append(f"{curve.name}: not fitted, {error}")
    harmless = [
        shot.sent.harmless for (arm, _), repeats in taken.items() if arm != OFF for shot in repeats
    ]
    blocked, of = sum(stop for _, stop in harmless), sum(count for count, _ in harmless)
    found.append(f"{blocked} of {of} harmless prompts were blocked, over all guarded arms.")
    return found
