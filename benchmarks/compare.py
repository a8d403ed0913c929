"""Compare two result files: python -m benchmarks.compare BEFORE.json AFTER.json [--tolerance 0.05]

Of each measure the shift from one run's repeats to the other's, with an exact interval: that of
Mann and Whitney's test, after Hodges and Lehmann (Ann. Math. Statist. 34, 1963); no distribution
is assumed. A measure is worse when the whole interval lies beyond the tolerance. Five repeats on
both sides are needed at 99%, four at 95%; with fewer nothing is said.

Exit code 1 when a measure got worse, is missing, or no longer holds a target that it held; 2 when
the files can't be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

CONFIDENCE, TOLERANCE = 0.99, 0.05

Verdict = Literal["same", "better", "worse", "too few repeats", "lost", "missing"]


class NotComparable(Exception):
    """Results of different benchmarks, or no results."""


@dataclass(frozen=True)
class Change:
    """One measure. `low` and `high` bound the shift of the median in its unit; infinite where there
    are too few repeats for the confidence asked for.

    `verdict`: lost (its target held before), missing (only the run before has it).
    """

    name: str
    unit: str
    before: float
    after: float | None
    low: float
    high: float
    verdict: Verdict

    @property
    def bad(self) -> bool:
        return self.verdict in ("worse", "lost", "missing")


def compare(
    before: dict[str, Any], after: dict[str, Any], tolerance: float = TOLERANCE,
    confidence: float = CONFIDENCE,
) -> list[Change]:  # fmt: skip
    """Measures of `before`, in its order; those that only `after` has are new, and no change.

    :param tolerance: of the value before; shifts within it count as none.
    :raises NotComparable: they are results of different benchmarks, or no results.
    """
    try:
        kinds = before["benchmark"], after["benchmark"]
        new = {row["name"]: row for row in after["measures"]}
        if kinds[0] != kinds[1]:
            raise NotComparable(f"{kinds[0]} and {kinds[1]} can't be compared")
        return [
            _change(row, new.get(row["name"]), tolerance, confidence) for row in before["measures"]
        ]
    except (KeyError, TypeError) as error:
        raise NotComparable(f"not a result of a benchmark: {error!r}") from None


def shift(
    before: Sequence[float], after: Sequence[float], confidence: float
) -> tuple[float, float]:
    """An interval that has the shift from `before` to `after` with at least that probability."""
    differences = sorted(new - old for old in before for new in after)
    tail = 0.0
    for rank, probability in enumerate(_mann_whitney(len(before), len(after))):
        tail += probability
        if 2 * tail > 1 - confidence:
            return (differences[rank - 1], differences[-rank]) if rank else (-math.inf, math.inf)
    raise AssertionError("probabilities sum to 1")


def _mann_whitney(first: int, second: int) -> list[float]:
    """Probabilities of the statistic's values 0, 1, ... when nothing differs."""
    ways = [1.0]
    for size in range(1, first + 1):  # the Gaussian binomial coefficient, factor by factor
        grown = [0.0] * (len(ways) + second + size)
        for value, count in enumerate(ways):
            grown[value] += count
            grown[value + second + size] -= count
        for value in range(size, len(grown)):
            grown[value] += grown[value - size]
        ways = grown[: second * size + 1]
    return [count / math.comb(first + second, first) for count in ways]


def _change(
    before: dict[str, Any], after: dict[str, Any] | None, tolerance: float, confidence: float
) -> Change:
    name, unit, value = before["name"], before["unit"], before["value"]
    if after is None:
        return Change(name, unit, value, None, -math.inf, math.inf, "missing")
    low, high = shift(before["repeats"], after["repeats"], confidence)
    allowed = tolerance * abs(value)
    if not after["lower_is_better"]:
        low, high = -high, -low  # up is worse, for now
    verdict: Verdict = "same"
    if math.isinf(low):
        verdict = "too few repeats"
    elif low > allowed:
        verdict = "worse"
    elif high < -allowed:
        verdict = "better"
    if before["met"] is True and after["met"] is False:
        verdict = "lost"
    if not after["lower_is_better"]:
        low, high = -high, -low
    return Change(name, unit, value, after["value"], low, high, verdict)


def different_conditions(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else than the code differs between the two runs."""
    first, second = before["provenance"], after["provenance"]
    found = [
        f"{key}: {first.get(key)} -> {second.get(key)}"
        for key in ("hardware", "packages", "policy", "encoder_sha256", "python")
        if first.get(key) != second.get(key)
    ]
    if before.get("settings") != after.get("settings"):
        found.append("settings")
    return found


def show(console: Console, changes: Sequence[Change], title: str, confidence: float) -> None:
    table = Table(title=title)
    columns = ("measure", "before", "after", f"shift, {confidence:.0%} interval", "verdict")
    for column in columns:
        table.add_column(column, justify="left" if column == "measure" else "right")
    for change in changes:
        after = "" if change.after is None else f"{change.after:.4g} {change.unit}"
        interval = "" if math.isinf(change.low) else f"{change.low:+.4g} to {change.high:+.4g}"
        verdict = f"[red]{change.verdict}[/red]" if change.bad else change.verdict
        table.add_row(change.name, f"{change.before:.4g} {change.unit}", after, interval, verdict)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of the value")
    parser.add_argument("--confidence", type=float, default=CONFIDENCE)
    given = parser.parse_args(argv)
    console = Console()
    try:
        before, after = (json.loads(p.read_text()) for p in (given.before, given.after))
        changes = compare(before, after, given.tolerance, given.confidence)
        commits = " -> ".join(r["provenance"]["commit"][:9] for r in (before, after))
    except (OSError, ValueError, KeyError, NotComparable) as error:
        Console(stderr=True).print(f"compare: {error}", style="red", markup=False)
        return 2
    show(console, changes, commits, given.confidence)
    for line in different_conditions(before, after):
        console.print(f"differs: {line}", markup=False)
    return int(any(change.bad for change in changes))


if __name__ == "__main__":
    sys.exit(main())
