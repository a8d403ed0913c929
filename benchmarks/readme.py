"""The numbers of the last `serving` run, written into the two READMEs between their marks.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import LABELS, PICTURES
from benchmarks.provenance import ROOT
from benchmarks.results import RESULTS, Measure
from benchmarks.serving_arms import OFF, ON
from benchmarks.serving_measures import fits
from benchmarks.stages import STAGES

START, END = "<!-- serving: python -m benchmarks.readme -->", "<!-- end of serving -->"
NONE = "No run is recorded yet."
Row = dict[str, Any]


def current() -> Path:
    """The whole run, or the quick one where that is all there is."""
    whole = RESULTS / "serving.json"
    return whole if whole.exists() else RESULTS / "serving-quick.json"


def block(page: Path) -> str:
    """What stands between the marks of a page."""
    result = current()
    return PAGES[page](json.loads(result.read_text())) if result.exists() else NONE


def front_page(record: dict[str, Any]) -> str:
    """For README.md: what is added, in time and in work, and the pictures."""
    pictures = [
        f"![{title}](benchmarks/results/{current().stem}-{name}.png)"
        for name, title in PICTURES.items()
    ]
    tables = [
        ("Time to first token, median, ms: without a guard, and what each adds.",
         _table(record, "first token p50", "first token added p50")),
        ("Processor time a request, all processes, ms: without a guard, and what each adds.",
         _table(record, "CPU time a request", "CPU time added a request")),
    ]  # fmt: skip
    found = [Measure(row["name"], row["unit"], tuple(row["repeats"]), tags=row["tags"])
             for row in record["measures"]]  # fmt: skip
    grows = [f"- {note}" for note in (*fits(found), record["notes"][-1])]
    return "\n\n".join(
        [_run(record), *(f"{what}\n\n{table}" for what, table in tables), "\n".join(pictures),
         "How costs grow (exponent with its 95% interval), and false alarms:",
         "\n".join(grows)]
    )  # fmt: skip


def details(record: dict[str, Any]) -> str:
    """For benchmarks/README.md: everything else that was measured."""
    parts = [
        ("Time to first token, 95th percentile, ms.", _table(record, "first token p95")),
        ("Between tokens, median, ms.", _table(record, "token gap p50")),
        ("Whole answer, median, ms.", _table(record, "whole answer p50")),
        ("Answers and blocks a second.", _table(record, "answered")),
        ("Attacks blocked, %.", _table(record, "attacks blocked")),
        ("Stages of a request with the guard on, mean, ms, from the server's metrics.",
         _stages(record)),
    ]  # fmt: skip
    return "\n\n".join([_run(record), *(f"{what}\n\n{table}" for what, table in parts)])


def _run(record: dict[str, Any]) -> str:
    known = record["provenance"]
    hardware, load = known["hardware"], known["load"]
    return (
        f"`{known['command']}`, commit {known['commit'][:9]}, {record['settings']['repeats']}"
        f" repeats in one run, {hardware['cores']} hyperthreads of {hardware['cpu']},"
        f" {hardware['gpu'] or 'no GPU'}, load at the end {load[0]:g} (its own is about 2 to 3). In"
        " brackets the lowest and the highest repeat."
    )


def _table(record: dict[str, Any], metric: str, added: str | None = None) -> str:
    """:param added: the metric of the arms with a guard, where it differs."""
    arms = [arm for arm in LABELS if arm in record["settings"]["arms"]]
    lines = [["load", *(LABELS[arm] for arm in arms)]]
    for cell in record["settings"]["cells"]:
        rows = [_find(record, metric if arm == OFF else added or metric, arm, cell) for arm in arms]
        if any(rows):
            lines.append([cell, *(_cell(row, sign=bool(added) and n > 0)
                                  for n, row in enumerate(rows))])  # fmt: skip
    return _markdown(lines)


def _stages(record: dict[str, Any]) -> str:
    lines = [["load", *STAGES]]
    for cell in record["settings"]["cells"]:
        rows = [_find(record, f"{stage} mean", ON, cell) for stage in STAGES]
        lines.append([cell, *(_cell(row, sign=False) for row in rows)])
    return _markdown(lines)


def _find(record: dict[str, Any], metric: str, arm: str, cell: str) -> Row | None:
    wanted = f"{metric} ({arm}, {cell})"
    return next((row for row in record["measures"] if row["name"] == wanted), None)


def _cell(row: Row | None, *, sign: bool) -> str:
    if row is None:
        return ""
    low, high = _number(min(row["repeats"])), _number(max(row["repeats"]))
    value = ("+" if sign and row["value"] >= 0 else "") + _number(row["value"])
    return value if low == high else f"{value} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    return "\n".join(_lines([head, ["---"] * len(head), *rows]))


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(row)} |"


def replace(text: str, new: str) -> str:
    """:raises ValueError: the marks are not there, once each and in this order."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"the text must have {START} and {END}, once each")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{new}\n\n{END}{rest.partition(END)[2]}"


PAGES = {ROOT / "README.md": front_page, ROOT / "benchmarks" / "README.md": details}


def main() -> None:
    for page in PAGES:
        page.write_text(replace(page.read_text(encoding="utf-8"), block(page)))


if __name__ == "__main__":
    main()
