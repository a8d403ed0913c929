"""The `vauban` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vauban import __version__
from vauban.commands import (
    approvals,
    console,
    evaluate,
    extraction,
    keys,
    policy,
    redteam,
    sandbox,
    train,
    triton,
    users,
)
from vauban.errors import VaubanError

app = typer.Typer(
    name="vauban",
    help="Security that runs inside the LLM inference server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # a local may hold a key
)
app.add_typer(approvals.app, name="approvals")
app.add_typer(console.app, name="console")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(extraction.app, name="extraction")
app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(redteam.app, name="redteam")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(train.app, name="train")
app.add_typer(triton.app, name="triton")
app.add_typer(users.app, name="users")

PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy file; default: what VAUBAN_POLICY names.")
]


@app.command()
def version() -> None:
    """Print the version."""
    Console().print(__version__, highlight=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model directory or name, as for vLLM.")],
    policy_file: PolicyFile = None,
) -> None:
    """Start vLLM with the guard in it. Takes every flag of `vllm serve`."""
    from vauban.commands.serve import serve as run

    run(model, context.args, policy_file)


@app.command()
def screen(
    jsonl: Annotated[Path, typer.Option(help='Rows with a "text".', exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Where the rows of verdicts go.")],
    policy_file: PolicyFile = None,
) -> None:
    """Judge texts offline, by the code that serves requests."""
    from vauban.commands.screen import screen_file
    from vauban.policy_sources import load_policy

    console = Console(stderr=True)
    counts = screen_file(jsonl, out, load_policy(file=policy_file).policy, console)
    found = ", ".join(f"{counts[action]} {action.name.lower()}" for action in sorted(counts))
    console.print(f"{sum(counts.values())} rows: {found or 'none'}")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on loopback; default: a free one.")
    ] = None,
    policy_file: PolicyFile = None,
) -> None:
    """Start a guarded vLLM with a stand-in model, send it a dozen requests, show the verdicts."""
    from vauban.commands.demo import demo as run

    console = Console()
    try:
        expected = run(console, port, policy_file, keep=keep)
    except KeyboardInterrupt:
        console.print("stopped")
        raise typer.Exit(130) from None
    if not expected:
        raise typer.Exit(1)


@app.command()
def gate(
    result: Annotated[Path, typer.Argument(help="What `vauban redteam` wrote.")],
    policy_file: Annotated[
        Path | None, typer.Option("--policy", help="Limits that differ from the ones that ship.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier result; what is surely worse fails.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 here.")] = None,
) -> None:
    """Pass (exit 0) or fail (exit 1) a red team result; 2: it can't be judged."""
    from vauban.commands.gate import gate as run

    passed = run(
        Console(),
        result,
        policy_file=policy_file,
        baseline_file=baseline,
        junit_file=junit,
        sarif_file=sarif,
    )
    if not passed:
        raise typer.Exit(1)


def main() -> None:
    """Run the command; an error that vauban raises on purpose is a sentence, not a traceback."""
    try:
        app()
    except VaubanError as error:
        Console(stderr=True).print(f"vauban: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(2) from None
