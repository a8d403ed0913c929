"""`vauban evaluate`: how well the classifier does on labelled files, and under attack."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vauban.commands.evaluate_extraction import extraction
from vauban.commands.progress import tracking
from vauban.errors import VaubanError
from vauban.policy import Policy
from vauban.policy_sources import load_policy

if TYPE_CHECKING:
    from vauban.training.examine import Plan
    from vauban.training.report import Report

app = typer.Typer(help="Measure the detectors.", no_args_is_help=True)


class AttackName(StrEnum):
    """The names of `training.adaptive_moves.ATTACKS`, which loads torch; and all of them."""

    APPEND = "append"
    SYNONYMS = "synonyms"
    TYPOS = "typos"
    CHARS = "chars"
    ENCODINGS = "encodings"
    SPLIT = "split"
    PADDING = "padding"
    ALL = "all"


app.command()(extraction)


@app.command()
def injection(
    data: Annotated[
        list[Path],
        typer.Option(help='.jsonl or .jsonl.gz with "text" and "label" (1 = attack). Repeatable.'),
    ],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="More files, as --data.")
    ] = None,
    attack: Annotated[
        list[AttackName] | None,
        typer.Option(help="Try to flip detections this way. Repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of tables.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, help="Most detections that each --attack starts from.")
    ] = 100,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Score so many random rows of each file; default: all."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint directory; default: the policy's.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Without the normaliser in front, to compare.")
    ] = False,
    policy_file: Annotated[
        Path | None,
        typer.Option("--policy", help="Policy file; default: what VAUBAN_POLICY names."),
    ] = None,
) -> None:
    """AUC, recall at fixed false-positive rates, over-defence, calibration, adaptive attacks."""
    from vauban.commands.evaluate_tables import tables  # torch is heavy; --help stays quick
    from vauban.training.adaptive_moves import ATTACKS
    from vauban.training.examine import Plan, as_evaluated

    names = [name.value for name in attack or ()]
    plan = Plan(
        files=[*data, *(more or ())],
        rows=rows,
        attacks=tuple(ATTACKS) if AttackName.ALL in names else names,
        limit=limit,
        seed=seed,
    )
    errors = Console(stderr=True)
    try:
        policy = as_evaluated(load_policy(file=policy_file).policy, weights=weights, raw=raw)
        report = _examine(policy, plan, errors)
    except VaubanError as error:
        errors.print(f"vauban: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(report.to_json())
        return
    out = Console()
    for table in tables(report):
        out.print(table)


def _examine(policy: Policy, plan: Plan, console: Console) -> Report:
    from vauban.training.examine import examine

    with tracking(console) as track:
        return examine(policy, plan, track)
