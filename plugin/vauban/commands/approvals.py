"""`vauban approvals`: see, approve and deny tool calls and answers that wait for a person.

A client of the server's own `/vauban/approvals` routes (README, "Tool calls"), with a key of scope
`approve` that is not the one that asked for the call.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Column, Table

from vauban.commands.admin_client import (
    DEFAULT_URL,
    Json,
    KeyFile,
    Url,
    asked,
    connected,
    print_json,
    safe,
)

STATES: Final = ("pending", "approved", "denied", "released", "expired", "all")
_FIELDS: Final = ("id", "state", "caller", "created", "expires", "by", "reason", "decided")
_PATH: Final = "/vauban/approvals"

app = typer.Typer(
    help="See, approve and deny tool calls that wait for a person.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # one of them is the key
)

Id = Annotated[str, typer.Argument(help="apr_..., as `vauban approvals list` shows it.")]
Reason = Annotated[
    str, typer.Option("--reason", help="Why; kept, and a denial's told to who asked.")
]


@app.command("list")
def list_approvals(
    state: Annotated[str, typer.Option(help=f"One of {', '.join(STATES)}.")] = "pending",
    limit: Annotated[int, typer.Option(min=1, max=500, help="Most approvals shown.")] = 100,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Show the calls that wait, newest first."""
    query = {"limit": str(limit), **({} if state == "all" else {"state": state})}
    with connected(url, key_file) as client:
        answer = asked(client, "GET", _PATH, query=query)
    if as_json:
        print_json(answer)
        return
    table = Table(
        Column("id", no_wrap=True), "state", "caller", "tools", Column("until", no_wrap=True)
    )
    for row in answer["approvals"]:
        tools = ", ".join(str(call["tool"]) for call in row["calls"])
        cells = (row["id"], row["state"], row["caller"], tools, row["expires"])
        table.add_row(*(safe(str(cell)) for cell in cells))
    Console().print(table)


@app.command()
def show(
    approval: Id, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: Json = False
) -> None:
    """Show what would be called, with all arguments."""
    with connected(url, key_file) as client:
        _show(asked(client, "GET", _path(approval)), as_json)


@app.command()
def approve(
    approval: Id,
    reason: Reason,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Let the calls out, once, to who asked for them."""
    _decide(approval, "approve", reason, url, key_file, as_json)


@app.command()
def deny(
    approval: Id,
    reason: Reason,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Say no. Takes an approval back as long as it has not been used."""
    _decide(approval, "deny", reason, url, key_file, as_json)


@app.command()
def key(url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Print the public key (JWK) that receipts of released calls are verified with."""
    with connected(url, key_file) as client:
        print_json(asked(client, "GET", "/vauban/receipt-key")["key"])


def _decide(approval: str, act: str, reason: str, url: str, key_file: Any, as_json: bool) -> None:
    with connected(url, key_file) as client:
        answer = asked(client, "POST", f"{_path(approval)}/{act}", {"reason": reason})
    _show(answer, as_json)


def _path(approval: str) -> str:
    return f"{_PATH}/{quote(approval, safe='')}"


def _show(approval: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(approval)
        return
    console = Console()

    def line(name: str, value: Any) -> None:
        console.print(f"{name:9} {safe(str(value))}", highlight=False, soft_wrap=True)

    for name in _FIELDS:
        if approval.get(name):
            line(name, approval[name])
    for call in approval["calls"]:
        line("tool", f"{call['tool']} ({call['why']})")
        # Parsed and written again only for the reader's eye: ASCII, nothing left out.
        written = json.dumps(json.loads(call["arguments"]), indent=2, ensure_ascii=True)
        for number, text in enumerate(written.splitlines()):
            line("arguments" if number == 0 else "", text)
    for said in approval.get("answer", ()):
        for number, text in enumerate(str(said).split("\n")):
            line("answer" if number == 0 else "", json.dumps(text)[1:-1])
