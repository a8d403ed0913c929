"""`vauban gate`: pass or fail a red team result."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vauban.errors import ReportError
from vauban.redteam.gate import Check, judge
from vauban.redteam.gate_policy import load_gate_policy
from vauban.redteam.gate_reports import junit, sarif
from vauban.redteam.result import Result, read_result


def gate(
    console: Console,
    result_file: Path,
    *,
    policy_file: Path | None = None,
    baseline_file: Path | None = None,
    junit_file: Path | None = None,
    sarif_file: Path | None = None,
) -> bool:
    """Judge a result, print the table, write the reports; return whether everything passed.

    :raises ReportError: a result can't be read, or a report can't be written.
    :raises PolicyError: the gate's policy is wrong.
    """
    policy = load_gate_policy(policy_file)
    result = read_result(result_file)
    baseline = read_result(baseline_file) if baseline_file else None
    checks = judge(result, policy, baseline)
    if junit_file:
        _write(junit_file, junit(checks))
    if sarif_file:
        _write(sarif_file, sarif(checks, result_file))
    console.print(_heading(result), highlight=False, markup=False, soft_wrap=True)
    if baseline is not None:
        for name, before, now in _differences(baseline, result):
            console.print(
                f"Note: the baseline has {name} {before}, this result {now}.",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
    console.print(_table(checks))
    failed = sum(not check.passed for check in checks)
    known = sum(check.known for check in checks)
    verdict = f"FAIL: {failed} of {len(checks)} checks" if failed else f"PASS: {len(checks)} checks"
    verdict += f", {known} known to fail (!) and no worse" if known else ""
    console.print(verdict, style="red" if failed else "green", highlight=False)
    return not failed


def _heading(result: Result) -> str:
    run = result.provenance
    tools = ", ".join(f"{tool.tool} {tool.version}" for tool in result.tools)
    lines = [
        f"{run.model} at {run.target}, policy {run.policy_digest}, server {run.server_build}",
        f"{tools or 'no tool'}; profile {run.profile}, seed {run.seed}, {run.started}",
    ]
    return "\n".join([*lines, run.target_note] if run.target_note else lines)


def _differences(before: Result, now: Result) -> list[tuple[str, str, str]]:
    """What makes two results hard to compare."""
    found = []
    for name in ("profile", "model", "seed", "server_build"):
        old, new = getattr(before.provenance, name), getattr(now.provenance, name)
        if old != new:
            found.append((name, str(old), str(new)))
    versions = [{t.tool: t.version for t in result.tools} for result in (before, now)]
    for tool in sorted(versions[0].keys() & versions[1].keys()):
        if versions[0][tool] != versions[1][tool]:
            found.append((tool, versions[0][tool], versions[1][tool]))
    return found


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("", "check", "of", "found", "wanted"):
        table.add_column(title, overflow="fold")
    for check in checks:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        mark = "[yellow]![/]" if check.known else mark
        cells = (check.kind, check.subject, check.found, check.wanted)
        table.add_row(mark, *map(escape, cells))
    return table


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ReportError(f"{path}: can't be written: {error.strerror}") from None
