"""`vauban evaluate extraction`: who is found among simulated thieves, and after how long."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vauban.commands.progress import tracking
from vauban.policy import EncoderPolicy
from vauban.policy_sources import load_policy

if TYPE_CHECKING:
    from vauban.training.extraction_evaluate import Evaluation


def extraction(
    data: Annotated[Path, typer.Option(help="Directory: train, dev and dev_ood .jsonl[.gz].")],
    people: Annotated[int, typer.Option(min=100, help="Honest people to simulate.")] = 1000,
    thieves: Annotated[int, typer.Option(min=3, help="Thieves of each kind.")] = 20,
    world: Annotated[
        str, typer.Option(help="held_out (sources the reference has not seen) or fit.")
    ] = "held_out",
    cache: Annotated[Path | None, typer.Option(help=".npy file that keeps embeddings.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that simulate.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    policy_file: Annotated[
        Path | None,
        typer.Option("--policy", help="Policy file; default: what VAUBAN_POLICY names."),
    ] = None,
) -> None:
    """True-positive rates of ours, the article's metric, PRADA, coverage and MMD."""
    from vauban.detectors.extraction.reference import Reference  # numpy and faiss are heavy
    from vauban.training.extraction import embedder
    from vauban.training.extraction_evaluate import evaluate
    from vauban.training.traffic_texts import WORLDS, texts
    from vauban.training.traffic_world import worlds

    if world not in WORLDS:
        raise typer.BadParameter(f"one of {', '.join(WORLDS)}", param_hint="--world")
    policy = load_policy(file=policy_file).policy
    reference = Reference.load(policy.extraction.reference)
    with tracking(Console(stderr=True)) as track:
        found = texts(data)
        embed = embedder(EncoderPolicy(), partial(track, "embedding"))
        result = evaluate(
            worlds(found, embed, cache)[world], reference, policy.extraction,
            people=people, thieves=thieves, seed=seed, track=track, workers=workers,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
        return
    console = Console()
    for table in _tables(result):
        console.print(table)


def _as_json(result: Evaluation) -> dict[str, object]:
    return {
        "people": result.people,
        "thieves_of_each_kind": result.thieves,
        "found": [
            {"group": g, "method": m, "queries": n, "false_positive_rate": r, "share": share}
            for (g, m, n, r), share in result.found.items()
        ],
        "ever_flagged": result.flagged,
        "ever_at_ban_score": result.ban_score,
        "median_first_flag": {kind: _finite(at) for kind, at in result.first_flag.items()},
        "services_degraded": result.services,
        "undeclared_services": {
            kind: {"flagged": flagged, "proposed_before_slowed": proposed}
            for kind, (flagged, proposed) in result.undeclared.items()
        },
        "campaigns": {
            how: {
                "found": seen.found,
                "median_queries": _finite(seen.queries),
                "bystanders": seen.bystanders,
                "false": seen.false,
            }
            for how, seen in result.campaigns.items()
        },
    }


def _finite(number: float) -> float | None:
    return None if number == float("inf") else number


def _tables(result: Evaluation) -> list[Table]:
    from vauban.training.extraction_evaluate import LENGTHS, RATES

    groups = list(dict.fromkeys(group for group, *_ in result.found))
    methods = list(dict.fromkeys(method for _, method, *_ in result.found))
    shares = Table(title="thieves found at 1% / 0.1% false positives, after so many queries")
    shares.add_column("kind")
    for method in methods:
        for length in LENGTHS:
            shares.add_column(f"{method}\n{length}")
    for group in groups:
        cells = []
        for method in methods:
            for length in LENGTHS:
                values = [result.found.get((group, method, length, rate)) for rate in RATES]
                cells.append("" if None in values else " / ".join(f"{v:.2f}" for v in values))
        shares.add_row(group, *cells)
    rest = Table(title=f"by the policy's thresholds; {result.people} people")
    for column in ("kind", "ever flagged", "ever ban_at", "median query of the first flag"):
        rest.add_column(column)
    for kind, share in result.flagged.items():
        first = result.first_flag.get(kind)
        shown = "" if first is None or first == float("inf") else f"{first:.0f}"
        rest.add_row(kind, f"{share:.1%}", f"{result.ban_score[kind]:.1%}", shown)
    for kind, share in result.services.items():
        rest.add_row(f"declared service, {kind}: ever degraded", f"{share:.1%}", "", "")
    for kind, (flagged, proposed) in result.undeclared.items():
        shown = f"{proposed:.1%} proposed before slowed"
        rest.add_row(f"undeclared service, {kind}", f"{flagged:.1%}", shown, "")
    for how, seen in result.campaigns.items():
        rest.add_row(
            f"campaigns of 20 accounts {how}: named", f"{seen.found:.0%}", "",
            f"{seen.queries:g} of all accounts",
        )  # fmt: skip
        rest.add_row("- other people named in them", f"{seen.bystanders:.1%}", "", "")
        rest.add_row("- named without a thief", f"{seen.false:.0%}", "", "")
    return [shares, rest]
