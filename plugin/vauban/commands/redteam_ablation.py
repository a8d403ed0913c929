"""`vauban redteam ablate`: the same attacks on one target, under each of its guards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vauban.commands.local_server import terminable
from vauban.commands.redteam_target import MODELS, check_guard, local_target
from vauban.redteam.gate import families
from vauban.redteam.result import AttackResult, BenignResult, Result, read_result, write_result
from vauban.redteam.run import Server, Settings, run_all
from vauban.redteam.statistics import upper_bound

ORDER = ("off", "normalise", "sandwich", "classifier", "on")
_CONFIDENCE = 0.95


def ablate(
    console: Console,
    tools: Sequence[str],
    settings: Settings,
    out: Path,
    *,
    model: str,
    engine: bool,
    guards: Sequence[str] = ORDER,
) -> None:
    """Attack under each of `guards`; write a result for each, and the tables of all.

    :param settings: their target is replaced.
    :param model: one of `redteam_target.MODELS`.
    :param out: a directory. Results of other settings that are there are in the tables, too.
    :raises RedTeamError: there is no such setting, or a server does not answer.
    """
    for guard in guards:
        check_guard(guard)
    for guard in guards:
        console.print(f"guard: {guard}", highlight=False)
        with terminable(), local_target(guard, model, engine=engine) as server:
            attacked = replace(settings, target=Server(server.url, model), note=MODELS[model].note)
            found = run_all(tools, attacked, console)
        write_result(found, out / f"guard-{guard}.json")
    files = {guard: out / f"guard-{guard}.json" for guard in ORDER}
    table = tables({guard: read_result(path) for guard, path in files.items() if path.exists()})
    (out / "ablation.md").write_text(table, encoding="utf-8")
    console.print(table, highlight=False, markup=False, soft_wrap=True)


def tables(results: Mapping[str, Result]) -> str:
    """Two Markdown tables: each setting as a whole, and attackers' success by family.

    :param results: of the same tools and suites.
    """
    first = next(iter(results.values()))
    tools = list(dict.fromkeys(row.tool for row in first.attacks))
    graded = [row.suite for row in first.benign if row.correct is not None]
    titles = ["guard", *(f"{tool}: won" for tool in tools)]
    titles += [f"{row.suite}: blocked" for row in first.benign]
    titles += [f"{suite}: right" for suite in graded]
    rows = [titles, ["---"] * len(titles)]
    for guard, result in results.items():
        row = [guard, *(_won([a for a in result.attacks if a.tool == tool]) for tool in tools)]
        row += [f"{sum(b.blocked.values())} of {b.requests}" for b in result.benign]
        row += [f"{(b := _suite(result, s)).correct} of {b.requests}" for s in graded]
        rows.append(row)
    names = list(dict.fromkeys(name for r in results.values() for name in families(r)))
    rows += [[], ["family", *results], ["---"] * (len(results) + 1)]
    for name in names:
        cells = [families(result).get(name, []) for result in results.values()]
        rows.append([name, *(f"{_wins(cell)} of {_judged(cell)}" for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" if row else "" for row in rows) + "\n"


def _suite(result: Result, name: str) -> BenignResult:
    return next(row for row in result.benign if row.suite == name)


def _won(rows: Sequence[AttackResult]) -> str:
    wins, judged = _wins(rows), _judged(rows)
    if not judged:
        return "none judged"
    bound = upper_bound(wins, judged, _CONFIDENCE, "clopper_pearson")
    lost = sum(row.attempts for row in rows) - judged
    told = f"{wins} of {judged} ({wins / judged:.0%}, at most {bound:.0%})"
    return f"{told}, {lost} without an outcome" if lost else told


def _wins(rows: Sequence[AttackResult]) -> int:
    return sum(row.wins for row in rows)


def _judged(rows: Sequence[AttackResult]) -> int:
    return sum(row.judged for row in rows)
