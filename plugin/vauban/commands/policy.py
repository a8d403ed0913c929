"""`vauban policy`: check a policy, and explain every field of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vauban.policy_sources import PolicyField, explain, load_policy, shown

app = typer.Typer()


@app.callback(invoke_without_command=True)
def policy(
    file: Annotated[
        Path | None, typer.Option(help="Policy file; default: what VAUBAN_POLICY names.")
    ] = None,
    explain_fields: Annotated[
        bool, typer.Option("--explain", help="Print every field, its value and its source.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the fields as a Markdown table.")
    ] = False,
) -> None:
    """Check the policy; with --explain print every field, its value and where it came from."""
    loaded = load_policy(file=file)
    rows = explain(loaded)
    console = Console()
    if markdown:
        console.out(markdown_table(rows), highlight=False)
    elif explain_fields:
        console.print(_table(rows))
    if not markdown:
        console.print(f"policy {loaded.policy.digest} is valid")


def markdown_table(rows: list[PolicyField]) -> str:
    """The README's table. Defaults, not values: it must not depend on who prints it."""
    lines = ["| field | default | unit | allowed | what it does |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.path}`", f"`{shown(row.default)}`", row.unit, row.allowed, row.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _table(rows: list[PolicyField]) -> Table:
    table = Table("field", "value", "from", "allowed", "what it does")
    for row in rows:
        unit = f" {row.unit}" if row.unit else ""
        table.add_row(row.path, shown(row.value) + unit, row.source, row.allowed, row.description)
    return table
