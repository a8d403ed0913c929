"""Compare two result files: python -m benchmarks.compare BEFORE.json AFTER.json

A difference counts only where the ranges of the repeats do not overlap. Exit code 1 when a
measure got worse in that sense, or a target that held no longer holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Change:
    """One measure in both files. `ratio` is after / before; None where before is 0."""

    name: str
    unit: str
    before: float
    after: float
    ratio: float | None
    verdict: str
    """better, worse, same (within the spread), or lost (its target held before)."""

    @property
    def bad(self) -> bool:
        return self.verdict in ("worse", "lost")


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Measures that both results have, in the order of `after`.

    :raises ValueError: they are results of different benchmarks.
    """
    if before["benchmark"] != after["benchmark"]:
        raise ValueError(f"{before['benchmark']} and {after['benchmark']} can't be compared")
    old = {row["name"]: row for row in before["measures"]}
    return [_change(old[row["name"]], row) for row in after["measures"] if row["name"] in old]


def _change(before: dict[str, Any], after: dict[str, Any]) -> Change:
    lower, upper = min(before["repeats"]), max(before["repeats"])
    above, below = min(after["repeats"]) > upper, max(after["repeats"]) < lower
    verdict = "same"
    if above or below:
        verdict = "better" if below == after["lower_is_better"] else "worse"
    if before["met"] is True and after["met"] is False:
        verdict = "lost"
    ratio = after["value"] / before["value"] if before["value"] else None
    return Change(after["name"], after["unit"], before["value"], after["value"], ratio, verdict)


def different_conditions(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else than the code differs between the two runs."""
    first, second = before["provenance"], after["provenance"]
    return [
        f"{key}: {first.get(key)} -> {second.get(key)}"
        for key in ("hardware", "packages", "policy", "encoder_sha256", "python")
        if first.get(key) != second.get(key)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    console = Console()
    before, after = (json.loads(p.read_text()) for p in (arguments.before, arguments.after))
    changes = compare(before, after)
    table = Table(title=f"{before['provenance']['commit'][:9]} -> "
                  f"{after['provenance']['commit'][:9]}")  # fmt: skip
    for column in ("measure", "before", "after", "ratio", "verdict"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for change in changes:
        ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
        table.add_row(
            change.name, f"{change.before:.4g} {change.unit}", f"{change.after:.4g} {change.unit}",
            ratio, f"[red]{change.verdict}[/red]" if change.bad else change.verdict,
        )  # fmt: skip
    console.print(table)
    for line in different_conditions(before, after):
        console.print(f"differs: {line}", markup=False)
    return int(any(change.bad for change in changes))


if __name__ == "__main__":
    sys.exit(main())
