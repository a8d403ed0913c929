"""What a benchmark hands back: measures with their repeats, as JSON and as a table.

A measure's value is the median over the repeats of one run. Targets are judged on it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"


def percentile(values: Sequence[float], share: float) -> float:
    """:param share: 0 to 1; linear between the two nearest ranks. NaN for no values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True)
class Measure:
    """One number. `repeats` are its values, one per repeat of the run; at least one.

    `baseline` is what the same run measured for the thing compared with. `at_most` and
    `at_least` are targets. `lower_is_better` tells `compare.py` which way is up.
    """

    name: str
    unit: str
    repeats: tuple[float, ...]
    baseline: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    lower_is_better: bool = True
    note: str = ""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """What the name says, for programs: the arm, the number of clients, ..."""

    @property
    def value(self) -> float:
        return statistics.median(self.repeats)

    @property
    def met(self) -> bool | None:
        """Whether the target holds; None where there is none."""
        if self.at_most is None and self.at_least is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    def row(self) -> dict[str, Any]:
        rounded = tuple(float(f"{value:.5g}") for value in self.repeats)
        return {**asdict(self), "repeats": rounded, "value": float(f"{self.value:.5g}"),
                "met": self.met}  # fmt: skip


@dataclass
class Result:
    """One benchmark's measures."""

    benchmark: str
    settings: dict[str, Any] = field(default_factory=dict)
    policy_flags: dict[str, Any] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self, directory: Path = RESULTS, suffix: str = "") -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.benchmark}{suffix}.json"
        record = {
            "benchmark": self.benchmark,
            "provenance": provenance(self.policy_flags),
            "settings": self.settings,
            "measures": [measure.row() for measure in self.measures],
            "notes": self.notes,
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        return path

    def show(self, console: Console, metrics: Collection[str] | None = None) -> None:
        """:param metrics: only measures with one of these as their tag `metric`; default: all."""
        table = Table(title=self.benchmark, title_justify="left")
        for column in ("measure", "value", "min", "max", "baseline", "target", "met"):
            table.add_column(column, justify="left" if column == "measure" else "right")
        for m in self.measures:
            if metrics is not None and m.tags.get("metric") not in metrics:
                continue
            met = {None: "", True: "yes", False: "[red]no[/red]"}[m.met]
            table.add_row(
                m.name, _number(m.value, m.unit), _number(min(m.repeats)), _number(max(m.repeats)),
                "" if m.baseline is None else _number(m.baseline, m.unit), _target(m), met,
            )  # fmt: skip
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}")


def _number(value: float, unit: str = "") -> str:
    return f"{value:.4g} {unit}".rstrip()


def _target(measure: Measure) -> str:
    if measure.at_most is not None:
        return f"<= {measure.at_most:g} {measure.unit}".rstrip()
    return "" if measure.at_least is None else f">= {measure.at_least:g} {measure.unit}".rstrip()
