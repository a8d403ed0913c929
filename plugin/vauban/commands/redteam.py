"""`vauban redteam`: attack an endpoint with garak and PyRIT, or start a target for them."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from vauban.redteam.pyrit_run import Attacker
    from vauban.redteam.result import Result
    from vauban.redteam.run import Settings

app = typer.Typer(help="Attack a running server with garak and PyRIT.", no_args_is_help=True)

KEY_VARIABLE = "OPENAI_API_KEY"
ATTACKER_KEY_VARIABLE = "VAUBAN_ATTACKER_KEY"
BASELINE_KEY_VARIABLE = "VAUBAN_BASELINE_KEY"

Target = Annotated[str, typer.Option(help="Base of an OpenAI-compatible endpoint.")]
Model = Annotated[str | None, typer.Option(help="Model to ask for; default: the first listed.")]
Baseline = Annotated[
    str | None,
    typer.Option(help="Base of the same model without the guard, to be attacked as well."),
]
Profile = Annotated[
    Literal["ci", "quick", "full"],
    typer.Option(help="ci: a minute or two, few attempts; quick: some minutes; full: hours."),
]
Parallel = Annotated[int, typer.Option(min=1, max=64, help="Requests at once of a tool.")]
Out = Annotated[Path, typer.Option(help="Where the result goes.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the tools and of sampling.")]
Limit = Annotated[
    float | None, typer.Option("--limit-s", min=1, help="Most seconds for each tool.")
]
Patience = Annotated[float, typer.Option("--request-s", min=0.1, help="Seconds per request.")]
Note = Annotated[str, typer.Option(help="What readers must know of the target.")]
TargetModel = Annotated[
    Literal["scripted", "trained"],
    typer.Option(help="Patterns, no language model; or the small trained stand-in."),
]
Benign = Annotated[
    Path | None,
    typer.Option(help="Your own harmless requests instead of ours: JSON lines with text, answer."),
]


AttackerUrl = Annotated[
    str | None, typer.Option(help="Base of an attacker model's endpoint, for several turns.")
]
AttackerModel = Annotated[str, typer.Option(help="Model to ask there.")]


@app.command()
def garak(
    target: Target,
    model: Model = None,
    profile: Profile = "quick",
    out: Out = Path("redteam.json"),
    baseline: Baseline = None,
    seed: Seed = 0,
    parallel: Parallel = 4,
    limit_s: Limit = None,
    request_s: Patience = 60.0,
    note: Note = "",
    benign: Benign = None,
) -> None:
    """Attack with garak 0.17.1. Keys: OPENAI_API_KEY, for --baseline VAUBAN_BASELINE_KEY."""
    settings = _settings(
        target, model, baseline, profile, seed, parallel, limit_s, request_s, note, benign
    )
    _run(["garak"], settings, out)


@app.command()
def pyrit(
    target: Target,
    model: Model = None,
    profile: Profile = "quick",
    out: Out = Path("redteam.json"),
    baseline: Baseline = None,
    seed: Seed = 0,
    parallel: Parallel = 4,
    limit_s: Limit = None,
    request_s: Patience = 60.0,
    note: Note = "",
    benign: Benign = None,
    attacker: AttackerUrl = None,
    attacker_model: AttackerModel = "",
) -> None:
    """Attack with PyRIT 1.1.0. Keys: as for garak; for --attacker VAUBAN_ATTACKER_KEY."""
    settings = _settings(
        target, model, baseline, profile, seed, parallel, limit_s, request_s, note, benign
    )
    _run(["pyrit"], replace(settings, attacker=_attacker(attacker, attacker_model)), out)


@app.command(name="all")
def all_tools(
    target: Target,
    model: Model = None,
    profile: Profile = "quick",
    out: Out = Path("redteam.json"),
    baseline: Baseline = None,
    seed: Seed = 0,
    parallel: Parallel = 4,
    limit_s: Limit = None,
    request_s: Patience = 60.0,
    note: Note = "",
    benign: Benign = None,
    attacker: AttackerUrl = None,
    attacker_model: AttackerModel = "",
) -> None:
    """Attack with both, one after the other, into one result."""
    settings = _settings(
        target, model, baseline, profile, seed, parallel, limit_s, request_s, note, benign
    )
    settings = replace(settings, attacker=_attacker(attacker, attacker_model))
    _run(["garak", "pyrit"], settings, out)


@app.command(name="target")
def start_target(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    guard: Annotated[
        str, typer.Option(help="on, off, or one stage alone: normalise, sandwich, classifier.")
    ] = "on",
    model: TargetModel = "trained",
    policy_file: Annotated[Path | None, typer.Option("--policy", help="Policy file.")] = None,
    engine: Annotated[
        bool, typer.Option(help="--no-engine: only the front half, in seconds; times mean nothing.")
    ] = True,
) -> None:
    """Start vLLM with a target that obeys what it is told: a small trained model, or a script."""
    from vauban.commands.redteam_target import serve_target

    serve_target(Console(), guard, model, port, policy_file, engine=engine)


@app.command()
def ablate(
    out: Annotated[Path, typer.Option(help="Directory for the results and tables.")] = Path(
        "ablation"
    ),
    guard: Annotated[
        list[str] | None, typer.Option(help="Only this setting, as for target; may be repeated.")
    ] = None,
    model: TargetModel = "trained",
    tool: Annotated[Literal["garak", "pyrit", "all"], typer.Option(help="What attacks.")] = "all",
    profile: Profile = "quick",
    engine: Annotated[
        bool, typer.Option("--engine", help="With vLLM, which takes a start for each setting.")
    ] = False,
    seed: Seed = 0,
    parallel: Parallel = 4,
    limit_s: Limit = None,
) -> None:
    """Attack a target of ours with the guard off, with each stage alone and with all on."""
    from vauban.commands.redteam_ablation import ORDER
    from vauban.commands.redteam_ablation import ablate as run

    settings = _settings(
        target="", model=None, baseline=None, profile=profile, seed=seed, parallel=parallel,
        limit_s=limit_s, request_s=60.0, note="", benign=None,
    )  # fmt: skip
    tools = ["garak", "pyrit"] if tool == "all" else [tool]
    run(Console(), tools, settings, out, model=model, engine=engine, guards=guard or ORDER)


def _settings(
    target: str,
    model: str | None,
    baseline: str | None,
    profile: str,
    seed: int,
    parallel: int,
    limit_s: float | None,
    request_s: float,
    note: str,
    benign: Path | None,
) -> Settings:
    from vauban.commands.redteam_target import MODELS, mark
    from vauban.redteam.benign import Suite, read_suite
    from vauban.redteam.relay import Bounds
    from vauban.redteam.run import Server, Settings

    settings = Settings(
        target=Server(target, model, os.environ.get(KEY_VARIABLE)),
        baseline=Server(baseline, model, os.environ.get(BASELINE_KEY_VARIABLE))
        if baseline
        else None,
        profile=profile,
        seed=seed,
        parallel=parallel,
        limit_s=limit_s,
        bounds=Bounds(request_s=request_s),
        note=note,
        notes={mark(name): about.note for name, about in MODELS.items()},
        command=shlex.join(["vauban", *sys.argv[1:]])[:2_000],
        hardware=f"{platform.machine()}, {os.cpu_count()} CPUs",
    )
    if benign is None:
        return settings
    suite = Suite(benign.name, trigger_words=False, rows=read_suite(benign))
    return replace(settings, suites=(suite,))


def _attacker(url: str | None, model: str) -> Attacker | None:
    from vauban.redteam.pyrit_run import Attacker

    if url is None:
        return None
    return Attacker(url, model, os.environ.get(ATTACKER_KEY_VARIABLE, "none"))


def _run(tools: Sequence[str], settings: Settings, out: Path) -> None:
    from vauban.commands.local_server import terminable
    from vauban.redteam.result import write_result
    from vauban.redteam.run import run_all

    console = Console()
    with terminable():  # a tool that is left behind would call a dead relay for ever
        result = run_all(tools, settings, console)
    write_result(result, out)
    _show(result, console)
    console.print(f"Result: {out}. Judge it: vauban gate {out}", highlight=False, markup=False)


def _show(result: Result, console: Console) -> None:
    """Wins and blocks by family, and the harmless requests."""
    from rich.table import Table

    from vauban.redteam.gate import families

    without = families(result.unguarded) if result.unguarded else {}
    table = Table(box=None, pad_edge=False)
    titles = ["family", "blocked by", "attempts", "won", "resisted", "without outcome"]
    for title in [*titles, *(["won without the guard"] if result.unguarded else [])]:
        table.add_column(title, justify="left" if title in titles[:2] else "right")
    for family, rows in families(result).items():
        stages = sorted({stage for row in rows for stage in row.blocked})
        blocked = [f"{s} {sum(row.blocked.get(s, 0) for row in rows)}" for s in stages]
        attempts, judged = sum(r.attempts for r in rows), sum(r.judged for r in rows)
        cells = [
            family, ", ".join(blocked), str(attempts), str(sum(r.wins for r in rows)),
            str(sum(r.resisted for r in rows)), str(attempts - judged),
        ]  # fmt: skip
        if result.unguarded:
            cells.append(str(sum(r.wins for r in without.get(family, ()))))
        table.add_row(*cells)
    console.print(table)
    for what, suites in (
        ("harmless", result.benign),
        ("without the guard", result.unguarded.benign if result.unguarded else ()),
    ):
        for suite in suites:
            correct = "" if suite.correct is None else f", {suite.correct} right"
            console.print(
                f"{what} ({suite.suite}): {sum(suite.blocked.values())} of {suite.requests}"
                f" blocked, {suite.answered} answered{correct}",
                highlight=False, markup=False,
            )  # fmt: skip
