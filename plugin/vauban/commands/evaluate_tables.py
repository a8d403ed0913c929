"""The tables of `vauban evaluate injection`. Shares are percentages; brackets are 95% intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vauban.training.adaptive import AttackReport
    from vauban.training.evaluate import Interval
    from vauban.training.report import FileReport, Group, Report

MAX_GROUPS = 12  # of one kind; the JSON document has all
_TITLES = {"source": "source", "kind": "kind", "lang": "language", "length_chars": "characters"}
_NONE = "-"


def tables(report: Report) -> Iterator[RenderableType]:
    files = [*report.files, report.all] if len(report.files) > 1 else list(report.files)
    encoder = report.encoder
    front = "" if encoder.normalised else ", without the normaliser"
    yield escape(
        f"vauban {encoder.version}, weights {encoder.weights_sha256[:12]}, policy"
        f" {encoder.policy_digest}{front}, seed {report.seed}"
    )
    for title, table in _titled(report, files):
        yield Text(title, style="bold")
        yield table


def _titled(report: Report, files: Sequence[FileReport]) -> Iterator[tuple[str, Table]]:
    yield "Detection: recall where so many of the same file's benign rows are over", _found(files)
    yield "At the thresholds in force", _thresholds(files)
    for file in files:
        for by, groups in file.groups.items():
            if len(groups) > 1 or by == "kind":
                title = f"{_short(file.name)} by {_TITLES[by]}, at its 1% threshold"
                yield title, _groups(_TITLES[by], groups)
    if any(file.over_defence for file in files):
        yield "Over-defence: tempting benign rows at or over a threshold", _over_defence(files)
    yield f"{_short(files[-1].name)}: calibration", _reliability(files[-1])
    if report.attacks:
        at = report.encoder.block_at
        yield f"Adaptive attacks on detections (score at least {at:.4f})", _attacks(report.attacks)


def _short(name: str) -> str:
    return PurePath(name).name


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD, collapse_padding=True)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _found(files: Sequence[FileReport]) -> Table:
    rates = [f"recall at {rate:.1%}" for rate in _rates(files)]
    table = _table("file", "attacks", "benign", "AUC", *rates, "AUC, like lengths", "ECE")
    for file in files:
        found, bias = file.detection, file.length_bias
        table.add_row(
            escape(_short(file.name)),
            str(file.attacks),
            str(file.benign),
            _fraction(found.auc if found else None),
            *([_percent(at.recall) for at in found.recall] if found else [_NONE] * len(rates)),
            _fraction(bias.matched_auc if bias else None),
            f"{file.calibration.error:.3f}",
        )
    return table


def _rates(files: Sequence[FileReport]) -> list[float]:
    found = next((file.detection for file in files if file.detection), None)
    return [at.false_positive_rate for at in found.recall] if found else []


def _thresholds(files: Sequence[FileReport]) -> Table:
    table = _table("file", "threshold", "score", "recall", "false positives", "unread", "failed")
    for file in files:
        for at in file.operating:
            table.add_row(
                escape(_short(file.name)),
                at.name,
                f"{at.threshold:.4f}",
                _percent(at.recall),
                _percent(at.false_positives, 2),
                str(file.unread),
                str(file.failed),
            )
    return table


def _groups(title: str, groups: Sequence[Group]) -> Table:
    table = _table(title, "attacks", "benign", "AUC", "recall", "false positives")
    largest = sorted(groups, key=lambda group: -(group.attacks + group.benign))[:MAX_GROUPS]
    for group in groups:
        if group in largest:
            table.add_row(
                escape(group.name),
                str(group.attacks),
                str(group.benign),
                _NONE if group.auc is None else f"{group.auc:.3f}",
                _NONE if group.recall is None else f"{group.recall:.1%}",
                _NONE if group.false_positives is None else f"{group.false_positives:.2%}",
            )
    if len(groups) > MAX_GROUPS:
        table.caption = f"and {len(groups) - MAX_GROUPS} smaller ones"
    return table


def _over_defence(files: Sequence[FileReport]) -> Table:
    table = _table("file", "kind", "rows", "1% threshold", "block_at")
    for file in files:
        for row in file.over_defence:
            table.add_row(
                escape(_short(file.name)),
                row.kind,
                str(row.rows),
                _percent(row.at_1_percent),
                _percent(row.at_block),
            )
    return table


def _reliability(file: FileReport) -> Table:
    table = _table("scores", "rows", "mean score", "share of attacks")
    for row in file.calibration.bins:
        table.add_row(
            f"{row.low:.2f}-{row.high:.2f}", str(row.rows), f"{row.score:.3f}", f"{row.attacks:.3f}"
        )
    return table


def _attacks(attacks: Sequence[AttackReport]) -> Table:
    table = _table(
        "attack", "detections", "flipped", "by 1, 2, ... changes", "mean changes", "mean queries"
    )
    for row in attacks:
        changes = _NONE if row.mean_changes is None else f"{row.mean_changes:.1f} {row.unit}"
        table.add_row(
            escape(f"{row.attack}: {row.variant}{'' if row.normalised else ' (raw)'}"),
            str(row.detections),
            _percent(row.share),
            " ".join(f"{share:.0%}" for share in row.flipped_within) or _NONE,
            changes,
            _NONE if row.mean_queries is None else f"{row.mean_queries:.1f}",
        )
    return table


def _fraction(value: Interval | None) -> str:
    return (
        _NONE if value is None else escape(f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]")
    )


def _percent(value: Interval | None, digits: int = 1) -> str:
    if value is None:
        return _NONE
    low, high = (f"{100 * x:.{digits}f}" for x in (value.low, value.high))
    return escape(f"{value.value:.{digits}%} [{low}, {high}]")
