"""Pictures of a `serving` or `extraction_cost` result, PNG and SVG, beside it.

python -m benchmarks.plots [RESULT.json ...]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS
from benchmarks.serving_arms import LLM_GUARD, MONITOR, OFF, ON, PROXY
from benchmarks.serving_measures import TOKENS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

LABELS = {
    OFF: "no guard", ON: "vauban", MONITOR: "vauban, monitor only",
    PROXY: "same classifier behind a proxy", LLM_GUARD: "llm-guard behind a proxy",
}  # fmt: skip
# Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart by colour-blind people, too.
COLOURS = {OFF: "#7f7f7f", ON: "#0072B2", MONITOR: "#56B4E9", PROXY: "#E69F00",
           LLM_GUARD: "#D55E00"}  # fmt: skip
MARKERS = {OFF: "s", ON: "o", MONITOR: "^", PROXY: "D", LLM_GUARD: "v"}
PICTURES = {
    "concurrency": f"Latency and throughput by concurrency, prompts of {TOKENS} tokens",
    "length": "Overhead by prompt length, one client",
    "batches": f"Encoder batches, prompts of {TOKENS} tokens",
}
EXTRACTION_PICTURES = {"users": "What the extraction detector costs, by users with full windows"}
WIDTH, HEIGHT = 7.2, 4.2
DODGE = 1.025
"""Factor between the arms on the horizontal axis, so that their bars do not hide each other."""


@dataclass(frozen=True)
class Point:
    """One measure: median, lowest and highest repeat, at a place on the horizontal axis."""

    x: float
    value: float
    low: float
    high: float


def select(record: dict[str, Any], x: str, **tags: Any) -> list[Point]:
    """Measures that have all of `tags`, ordered by their tag `x`."""
    points = [
        Point(row["tags"][x], row["value"], min(row["repeats"]), max(row["repeats"]))
        for row in record["measures"]
        if row["tags"].get(x) is not None
        and all(row["tags"].get(name) == value for name, value in tags.items())
    ]
    return sorted(points, key=lambda point: point.x)


def draw_all(path: Path) -> list[Path]:
    """The files written: two of each picture."""
    record = json.loads(path.read_text())
    drawings = {"concurrency": concurrency, "length": length, "batches": batches, "users": users}
    extraction = record["benchmark"] == "extraction_cost"
    written = []
    for name, title in (EXTRACTION_PICTURES if extraction else PICTURES).items():
        figure = drawings[name](record)
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        for kind in ("png", "svg"):
            target = path.with_name(f"{path.stem}-{name}.{kind}")
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(target, dpi=160, metadata=metadata)
            written.append(target)
    return written


def concurrency(record: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(1.55 * WIDTH, HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm in _arms(record):
        shared = {"arm": arm, "tokens": TOKENS, "attacks": 0.0}
        _line(left, arm, select(record, "clients", metric="first token p50", **shared))
        _line(right, arm, select(record, "clients", metric="answered", **shared))
    for axes, unit in ((left, "time to first token, median (ms)"), (right, "answers per second")):
        axes.set(xscale="log", yscale="log", ylabel=unit,
                 xlabel="clients at a time (closed loop)")  # fmt: skip
        _plain_numbers(axes, sorted({p.x for p in _clients(record)}))
    _finish(figure, left, record)
    return figure


def length(record: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    sizes: set[float] = set()
    for arm in _arms(record):
        tags = {"arm": arm, "clients": 1, "attacks": 0.0}
        points = select(record, "tokens", metric="first token added p50", **tags)
        sizes |= {point.x for point in points}
        _line(axes, arm, points)
    axes.set(xscale="log", yscale="log", xlabel="prompt (tokens of the served model)",
             ylabel="added to the time to first token,\nmedian (ms)")  # fmt: skip
    _plain_numbers(axes, sorted(sizes))
    _finish(figure, axes, record)
    return figure


def batches(record: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    clients = sorted({p.x for p in _clients(record)})
    found = {
        count: select(record, "batch", metric="batch", arm=ON, tokens=TOKENS, attacks=0.0,
                      clients=count)
        for count in clients
    }  # fmt: skip
    bounds = sorted({int(point.x) for points in found.values() for point in points})
    wide = 0.8 / max(1, len(clients))
    shades = ("#9ecae1", "#3182bd", "#08306b", "#000000")
    for place, (count, points) in enumerate(found.items()):
        at = [bounds.index(int(p.x)) + (place - (len(clients) - 1) / 2) * wide for p in points]
        values = [point.value for point in points]
        spread = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
        label = f"{count:g} client{'s' if count > 1 else ''}"
        axes.bar(at, values, wide, yerr=spread, label=label, color=shades[place % 4],
                 error_kw={"linewidth": 0.8, "capsize": 2, "ecolor": "0.35"})  # fmt: skip
    axes.set_xticks(range(len(bounds)), [_range(bounds, n) for n in range(len(bounds))])
    axes.set(xlabel="requests in the same encoder pass", ylabel="share of requests (%)",
             ylim=(0, 105))  # fmt: skip
    _finish(figure, axes, record)
    return figure


def users(record: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(1.3 * WIDTH, HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, what, unit, scale in (
        (left, "a request", "processor time a request (µs)", 1.0),
        (right, "a user", "memory a user (kB)", 1e-3),
    ):
        points, aim = _by_users(record, what)
        spread = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
        axes.errorbar(
            [p.x for p in points], [p.value * scale for p in points],
            yerr=[[scale * part for part in side] for side in spread], label="measured",
            color=COLOURS[ON], marker=MARKERS[ON], markersize=5, linewidth=1.6, elinewidth=0.9,
            capsize=3,
        )  # fmt: skip
        if aim is not None:
            axes.axhline(
                aim * scale, color="0.5", linewidth=1, linestyle="--", label="aim: at most"
            )
        axes.set(xscale="log", xlabel="users with full windows", ylabel=unit)
        axes.set_xticks([p.x for p in points], [f"{p.x:,.0f}" for p in points])
        axes.minorticks_off()
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    _finish(figure, left, record)
    return figure


def _by_users(record: dict[str, Any], what: str) -> tuple[list[Point], float | None]:
    """Measures named "`what`, 1,000 users", and the aim of the last that has one."""
    points, aim = [], None
    for row in record["measures"]:
        if named := re.fullmatch(rf"{what}, ([\d,]+) users", row["name"]):
            count = float(named[1].replace(",", ""))
            points.append(Point(count, row["value"], min(row["repeats"]), max(row["repeats"])))
            aim = row["at_most"] if row["at_most"] is not None else aim
    return sorted(points, key=lambda point: point.x), aim


def _range(bounds: Sequence[int], place: int) -> str:
    """Metrics' buckets double, so the one below is half."""
    high = bounds[place]
    low = high // 2 + 1
    return str(high) if low >= high else f"{low}-{high}"


def _arms(record: dict[str, Any]) -> Iterator[str]:
    return (arm for arm in LABELS if arm in record["settings"]["arms"])


def _clients(record: dict[str, Any]) -> list[Point]:
    return select(record, "clients", metric="first token p50", arm=OFF, tokens=TOKENS, attacks=0.0)


def _line(axes: Axes, arm: str, points: Sequence[Point]) -> None:
    if not points:
        return
    spread = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    aside = DODGE ** (list(LABELS).index(arm) - len(LABELS) // 2)
    axes.errorbar(
        [p.x * aside for p in points], [p.value for p in points], yerr=spread, label=LABELS[arm],
        color=COLOURS[arm], marker=MARKERS[arm], markersize=5, linewidth=1.6, elinewidth=0.9,
        capsize=3,
    )  # fmt: skip


def _plain_numbers(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _finish(figure: Figure, axes: Axes, record: dict[str, Any]) -> None:
    known = record["provenance"]
    hardware = known["hardware"]
    repeats = max(len(row["repeats"]) for row in record["measures"])
    where = f"{hardware['cores']} hyperthreads of {hardware['cpu']}"
    figure.supxlabel(
        f"{where}, {hardware['gpu'] or 'no GPU'}; commit {known['commit'][:9]};"
        f" median of {repeats} repeats, bars: lowest and highest",
        fontsize=7, color="0.35", x=0.01, ha="left",
    )  # fmt: skip
    for part in figure.axes:
        part.grid(axis="y", color="0.9", linewidth=0.8)
        part.set_axisbelow(True)
        part.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    whole = [RESULTS / "serving.json", RESULTS / "extraction_cost.json"]
    parser.add_argument("results", type=Path, nargs="*", default=whole, metavar="RESULT.json")
    for result in parser.parse_args().results:
        for path in draw_all(result):
            print(path)


if __name__ == "__main__":
    main()
