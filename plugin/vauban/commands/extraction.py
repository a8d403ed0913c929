"""`vauban extraction`: recorded queries through the extraction detector, and its reference."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vauban.errors import MalformedRequest
from vauban.policy import Policy
from vauban.policy_sources import load_policy
from vauban.types import Caller

if TYPE_CHECKING:
    from vauban.detectors.extraction.replay import Row, UserReport

app = typer.Typer(help="Who explores the model systematically.", no_args_is_help=True)

TEXTS_PER_BATCH = 256
MOST_SHOWN = 50

Jsonl = Annotated[
    Path,
    typer.Option(
        help='Rows {"user", "text" or "embedding", "time"?, "service"?, "group"?}, in order.',
        exists=True, dir_okay=False,
    ),
]  # fmt: skip
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy file; default: what VAUBAN_POLICY names.")
]


@app.command()
def replay(
    jsonl: Jsonl,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of a table.")
    ] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write every change of score: user, query, ...")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw scores and maps of the most suspect users (.png or .svg)."),
    ] = None,
    policy_file: PolicyFile = None,
) -> None:
    """What the detector would have done to whom, and after how many queries."""
    from vauban.detectors.extraction.detector import ExtractionDetector
    from vauban.detectors.extraction.replay import replay as run

    policy = load_policy(file=policy_file).policy
    console = Console(stderr=True)
    rows = list(_rows(jsonl, policy, console))
    detector = ExtractionDetector(policy.extraction)
    with _bar(console, "replaying", len(rows)) as advance:
        try:
            reports = run(rows, detector, advance)
        except ValueError as error:
            raise MalformedRequest(f"{jsonl}: {error}") from None
    if csv_file is not None:
        _write_csv(csv_file, reports)
    if plot is not None:
        from vauban.commands.extraction_plot import draw

        draw(plot, reports, detector)
    if as_json:
        document = {"users": [_as_json(report) for report in reports]}
        typer.echo(json.dumps(document))
    else:
        Console().print(_table(reports))


@app.command()
def calibrate(
    jsonl: Jsonl,
    out: Annotated[Path, typer.Option(help="Directory of the new reference.")],
    keep_suspects: Annotated[
        bool,
        typer.Option(help="Also learn from users that the present reference would flag."),
    ] = False,
    policy_file: PolicyFile = None,
) -> None:
    """Learn what honest callers of this server look like; set extraction.reference to it."""
    from vauban.detectors.extraction.calibrate import calibrate as run
    from vauban.detectors.extraction.reference import Reference

    policy = load_policy(file=policy_file).policy
    console = Console(stderr=True)
    rows = list(_rows(jsonl, policy, console))
    reference = Reference.load(policy.extraction.reference)
    found = run(rows, reference, policy.extraction, keep_suspects=keep_suspects)
    found.reference.save(out)
    console.print(
        f"{found.learned} users learned from, {found.suspects} left out as suspect,"
        f" {found.short} with too few queries; reference written to {out}"
    )
    table = Table("statistic", "honest median moved by", title="drift, in honest spreads")
    for name, moved in found.drift.items():
        table.add_row(name, f"{moved:+.2f}")
    console.print(table)


def _rows(source: Path, policy: Policy, console: Console) -> Iterator[Row]:
    """Recorded rows with their embeddings; texts are embedded as the server does it."""
    import numpy as np

    from vauban.detectors.extraction.replay import Row

    documents = list(_documents(source))
    texts = [document["text"] for document in documents if "embedding" not in document]
    embedded = iter(_embed(texts, policy, console))
    for number, document in enumerate(documents, start=1):
        if "embedding" in document:
            vector = np.array([_number(x) for x in document["embedding"]])
        else:
            found = next(embedded)
            if found is None:  # nothing in it that could be read
                continue
            vector = found
        if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
            raise MalformedRequest(
                f"{source}, row {number}: the embedding must be a list of finite numbers, not all 0"
            )
        vector = vector / np.abs(vector).max()  # or squares of large numbers are none
        group = document.get("group")
        yield Row(
            Caller(
                document["user"],
                service=document.get("service") is True,
                tags=(f"group:{group}",) if isinstance(group, str) and group else (),
            ),
            (vector / np.linalg.norm(vector)).astype(np.float32),
            document.get("time"),
        )


def _number(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # JSON's whole numbers have no end
        return math.inf


def _documents(source: Path) -> Iterator[dict[str, Any]]:
    with source.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{source}, line {number}"
            try:
                row = json.loads(line)
            except ValueError:
                raise MalformedRequest(f"{where}: not valid JSON") from None
            if not isinstance(row, dict) or not isinstance(row.get("user"), str | int):
                raise MalformedRequest(f'{where}: no "user" that is a string')
            row["user"] = str(row["user"])
            vector = row.get("embedding")
            if "embedding" in row:
                numbers = isinstance(vector, list) and all(
                    isinstance(x, int | float) and not isinstance(x, bool) for x in vector
                )
                if not numbers:
                    raise MalformedRequest(f'{where}: "embedding" must be a list of numbers')
            elif not isinstance(row.get("text"), str):
                raise MalformedRequest(f'{where}: no "text" that is a string, and no "embedding"')
            yield row


def _embed(texts: Sequence[str], policy: Policy, console: Console) -> list[Any]:
    if not texts:
        return []
    from vauban.offline import OfflineScreen, as_user

    screen = OfflineScreen(policy)
    vectors: list[Any] = []
    with _bar(console, "embedding", len(texts)) as advance:
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            batch = texts[start : start + TEXTS_PER_BATCH]
            vectors += screen.embed([as_user(text) for text in batch])
            advance(len(batch))
    return vectors


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Any]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)


def _as_json(report: UserReport) -> dict[str, Any]:
    return {
        "user": report.user,
        "action": report.action,
        "first_action_at": report.first_action_at,
        "score": report.score,
        "peak_score": report.peak_score,
        "queries": report.queries,
        "reached_at": report.reached_at,
        "campaign": report.campaign or None,
        "signals": dict(report.signals),
    }


def _write_csv(target: Path, reports: Sequence[UserReport]) -> None:
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "query", "time", "score", "level"])
        for report in reports:
            for step in report.steps:
                level = step.level.name.lower()
                time = "" if step.time is None else step.time
                writer.writerow([report.user, step.query, time, f"{step.score:.4f}", level])


def _table(reports: Sequence[UserReport]) -> Table:
    worst = sorted(reports, key=lambda report: (-report.level, -report.score))
    table = Table(title=f"{len(reports)} users", caption=_left_out(len(worst)))
    for column in ("user", "queries", "score", "action", "first action at", "campaign"):
        table.add_column(column)
    for report in worst[:MOST_SHOWN]:
        first = report.first_action_at
        table.add_row(
            report.user, str(report.queries), f"{report.score:.3f}", report.action,
            "" if first is None else str(first), report.campaign,
        )  # fmt: skip
    return table


def _left_out(count: int) -> str | None:
    return f"{count - MOST_SHOWN} more are less suspect" if count > MOST_SHOWN else None
