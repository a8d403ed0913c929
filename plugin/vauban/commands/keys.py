"""`vauban keys`: mint, list and revoke API keys.

The store is `--file`, else `identity.keys_file` of the policy (file or environment), else
`./vauban-keys.json`. The key itself goes to stdout once and nothing else does, so that
`KEY=$(vauban keys add ci)` works; notes and errors go to stderr.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vauban.access.keyfile import add_key, declare_key, read_key_file, revoke_key
from vauban.access.keys import ID_CHARS, KeyRecord
from vauban.access.scopes import ALL, FEATURES, ROUTE_GROUPS, SYSTEM_PROMPT
from vauban.errors import ConfigError
from vauban.policy_sources import load_policy
from vauban.types import RateLimit

DEFAULT_FILE: Final = Path("vauban-keys.json")
DEFAULT_EXPIRES: Final = "90d"
_DURATION: Final = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}

# No locals in tracebacks: one of them is the key.
app = typer.Typer(
    help="Mint, list and revoke API keys.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help=f"Key store. Default: the policy's identity.keys_file, else ./{DEFAULT_FILE}.",
    ),
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Unique name: letters, digits, '.', '_', '-'.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What the key opens; repeatable, default '{ALL}'. Routes: {ALL}"
            f" {' '.join(ROUTE_GROUPS)}. Models: model:PATTERN. Request features:"
            f" feature:* {' '.join('feature:' + name for name in FEATURES)}."
            f" {SYSTEM_PROMPT}: this caller's system messages are not screened.",
        ),
    ] = None,
    expires: Annotated[
        str, typer.Option(help="30d, 12h, 8w, a date (2027-01-31, from 00:00 UTC on) or 'never'.")
    ] = DEFAULT_EXPIRES,
    requests_per_min: Annotated[
        int | None, typer.Option(help="Most requests a minute; default: the policy's.")
    ] = None,
    tokens_per_min: Annotated[
        int | None,
        typer.Option(help="Most prompt and completion tokens a minute; default: the policy's."),
    ] = None,
    service: Annotated[
        bool,
        typer.Option(
            "--service", help="A program that serves many people: held to its own standard."
        ),
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(help="Customer or parent: keys of one group are looked at together, too."),
    ] = None,
    file: FileOption = None,
) -> None:
    """Mint a key and print it. Only its hash is stored: it can't be shown again."""
    with _errors_to_stderr() as notes:
        path = _store(file)
        now = datetime.now(UTC).replace(microsecond=0)
        key, record = add_key(
            path,
            name,
            scope or [ALL],
            created=now,
            expires=parse_expires(expires, now),
            limit=RateLimit(requests_per_min, tokens_per_min),
            service=service,
            group=group,
        )
        typer.echo(key.text)
        until = "never expires" if record.expires is None else f"expires {_moment(record.expires)}"
        _note(notes, f"key {key.id} ({name}) {until}; scopes: {' '.join(record.scopes)}")
        _note(notes, f"stored in {path}; it is shown only now. Servers use this store when")
        _note(notes, f"identity.keys_file (VAUBAN_IDENTITY__KEYS_FILE) names it: {path.resolve()}")


@app.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    file: FileOption = None,
) -> None:
    """Show all keys of the store, without their hashes."""
    with _errors_to_stderr():
        records = read_key_file(_store(file)).keys
    if as_json:
        rows = [
            record.model_dump(mode="json", exclude={"sha256"})
            | {"service": record.service, "group": record.group}
            for record in records
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    now = datetime.now(UTC)
    table = Table(
        "name",
        Column("id", no_wrap=True, min_width=ID_CHARS),
        "scopes",
        "expires",
        "requests/min",
        "tokens/min",
        "group",
    )
    for record in records:
        table.add_row(*(escape(cell) for cell in _row(record, now)))
    Console().print(table)


@app.command()
def revoke(
    name_or_id: Annotated[
        str, typer.Argument(help="Name or id; the id is the part of the key between the two '_'.")
    ],
    file: FileOption = None,
) -> None:
    """Remove a key. Running servers refuse it within a second."""
    with _errors_to_stderr() as notes:
        record = revoke_key(_store(file), name_or_id)
        _note(notes, f"key {record.id} ({record.name}) is revoked")


@app.command("service")
def declare(
    name_or_id: Annotated[str, typer.Argument(help="Name or id of a key.")],
    is_service: Annotated[
        bool, typer.Option("--yes/--no", help="Whether it belongs to a service.")
    ] = True,
    file: FileOption = None,
) -> None:
    """Declare that a key belongs to a program that serves many people, or that it does not."""
    with _errors_to_stderr() as notes:
        record = declare_key(_store(file), name_or_id, service=is_service)
        what = "a service's" if record.service else "a person's"
        _note(notes, f"key {record.id} ({record.name}) is {what}; it stays as it is otherwise")


def parse_expires(text: str, now: datetime) -> datetime | None:
    """`30d`, `12h`, `8w`, an ISO date (00:00 UTC of that day) or `never`.

    :raises ConfigError: anything else.
    """
    if text == "never":
        return None
    if match := _DURATION.fullmatch(text):
        return now + timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ConfigError("--expires takes 30d, 12h, 8w, a date (2027-01-31) or never") from None


def _store(file: Path | None) -> Path:
    return file or load_policy().policy.identity.keys_file or DEFAULT_FILE


def _row(record: KeyRecord, now: datetime) -> tuple[str, ...]:
    if record.expires is None:
        expires = "never"
    else:
        gone = " (expired)" if record.expires <= now else ""
        expires = f"{_moment(record.expires)}{gone}"
    limits = (record.requests_per_min, record.tokens_per_min)
    return (
        record.name,
        record.id,
        " ".join(record.scopes),
        expires,
        *("policy" if limit is None else str(limit) for limit in limits),
        " ".join(filter(None, ("service" if record.service else "", record.group))),
    )


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _note(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


@contextmanager
def _errors_to_stderr() -> Iterator[Console]:
    """Notes go to the console given; a `ConfigError` becomes one line there and exit code 1."""
    notes = Console(stderr=True)
    try:
        yield notes
    except ConfigError as error:
        _note(notes, f"error: {error}")
        raise typer.Exit(1) from None
