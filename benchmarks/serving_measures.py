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


Taken = Mapping[tuple[str, Cell], list[tuple[Sent, Stages]]]
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
            yield _measure(metric, "ms", arm, cell, [of(sent) for sent, _ in repeats])
        rates = [sent.per_second for sent, _ in repeats]
        yield _measure("answered", "requests/s", arm, cell, rates, lower_is_better=False)
        if arm != OFF:
            base = taken[OFF, cell]
            added = [
                sent.p(0.5, "first") - plain.p(0.5, "first")
                for (sent, _), (plain, _) in zip(repeats, base, strict=True)
            ]
            yield _measure("first token added p50", "ms", arm, cell, added)
        if cell.attacks and arm != OFF:
            yield from _blocked(arm, cell, [sent for sent, _ in repeats])
        yield from _stages(arm, cell, [stages for _, stages in repeats])
    yield from _growths(taken)


def _measure(
    metric: str, unit: str, arm: str, cell: Cell, values: list[float], **more: Any
) -> Measure:
    tags = {"metric": metric, "arm": arm, **cell.tags, **more.pop("tags", {})}
    return Measure(f"{metric} ({arm}, {cell})", unit, tuple(values), tags=tags, **more)


def _blocked(arm: str, cell: Cell, sent: list[Sent]) -> Iterator[Measure]:
    for kind, lower_is_better in (("attacks", False), ("harmless", True)):
        counts: list[tuple[int, int]] = [getattr(one, kind) for one in sent]
        shares = [100 * blocked / of for of, blocked in counts]
        yield _measure(
            f"{kind} blocked", "%", arm, cell, shares, lower_is_better=lower_is_better
        )  # fmt: skip


def _stages(arm: str, cell: Cell, stages: list[Stages]) -> Iterator[Measure]:
    for stage in stages[0].mean_ms:
        values = [one.mean_ms[stage] for one in stages if stage in one.mean_ms]
        yield _measure(f"{stage} mean", "ms", arm, cell, values)
    for size in stages[0].batches:
        shares = [100 * one.batches[size] for one in stages]
        if any(shares) and arm == ON:
            yield _measure(
                f"requests in encoder batches up to {size}", "%", arm, cell, shares,
                lower_is_better=False, tags={"metric": "batch", "batch": size},
            )  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Costs of a guarded request in milliseconds, by a size, one per repeat."""

    name: str
    costs: Mapping[float, list[float]]


def curves(taken: Taken) -> Iterator[Curve]:
    """How the guard's cost grows with the prompt and with the number of clients."""
    lengths, crowd, passes = {}, {}, {}
    for (arm, cell), repeats in taken.items():
        if arm != ON or cell.attacks or not cell.load.clients:
            continue
        pairs = list(zip(repeats, taken[OFF, cell], strict=True))
        if cell.load.clients == 1:
            lengths[float(cell.tokens)] = [
                on.p(0.5, "first") - off.p(0.5, "first") for (on, _), (off, _) in pairs
            ]
            passes[float(cell.tokens)] = [stages.mean_ms["encoder pass"] for _, stages in repeats]
        if cell.tokens == TOKENS:
            crowd[float(cell.load.clients)] = [
                1e3 / on.per_second - 1e3 / off.per_second for (on, _), (off, _) in pairs
            ]
    yield Curve("first token added, by prompt tokens (1 client)", lengths)
    yield Curve("encoder pass, by prompt tokens (1 client)", passes)
    yield Curve("machine time added a request, by clients", crowd)


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
    harmless = [sent.harmless for (arm, _), repeats in taken.items() if arm != OFF
                for sent, _ in repeats]  # fmt: skip
    blocked, of = sum(stop for _, stop in harmless), sum(count for count, _ in harmless)
    found.append(f"{blocked} of {of} harmless prompts were blocked, over all guarded arms.")
    return found
