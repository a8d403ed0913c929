"""`vauban users`: see and change how a running server treats its users.

A client of the server's own `/vauban/users` routes (README, "Users"). The key is one of scope
`admin`, from `--key-file` or VAUBAN_KEY; never from an argument, which other users of a machine
can see. A user is named by principal id (`key:...`, `jwt:...`, `anon:...`) as audit lines have it,
or by a key's id as `vauban keys list` shows it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vauban.access.identity import is_loopback
from vauban.errors import ConfigError, VaubanError

KEY_VARIABLE: Final = "VAUBAN_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8000"
LEVELS: Final = ("clear", "flagged", "slowed", "degraded", "held", "banned")
_KEY_ID: Final = re.compile(r"[0-9a-z]{12}")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PAGE: Final = 1_000
_TIMEOUT_S: Final = 30.0

app = typer.Typer(
    help="See, ban, unban and forget users of a running server.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # one of them is the key
)

Url = Annotated[str, typer.Option("--url", help="The guarded server.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help=f"File with a key of scope admin; default: {KEY_VARIABLE}."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]
User = Annotated[str, typer.Argument(help="key:..., jwt:..., anon:..., or the id of a key.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")]
For = Annotated[
    str | None,
    typer.Option("--for", help="30s, 10m, 12h, 7d or 4w; default: as the policy has it."),
]


class UsersFailed(VaubanError):
    """The server refused, or did not answer."""


@app.command("list")
def list_users(
    level: Annotated[str | None, typer.Option(help=f"One of {', '.join(LEVELS[1:])}.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Most users shown.")] = 100,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Show the users that have a level."""
    with _client(url, key_file) as client:
        users = list(_pages(client, level, limit))
    if as_json:
        _print_json({"users": users})
        return
    table = Table(
        Column("user", no_wrap=True),
        "level",
        Column("until", no_wrap=True, min_width=len("2027-01-31T00:00:00Z")),
        *("by", "score", "reason"),
    )
    for user in users:
        table.add_row(*(_safe(cell) for cell in _row(user)))
    Console().print(table)


@app.command()
def explain(
    user: User, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: Json = False
) -> None:
    """Show why a user has the level it has: evidence, decisions, and when they end."""
    with _client(url, key_file) as client:
        _show(_asked(client, "GET", _path(user)), as_json)


@app.command()
def ban(
    user: User,
    reason: Reason,
    lasts: For = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Refuse every request of a user until the ban ends."""
    body = {"reason": reason, **_seconds(lasts)}
    with _client(url, key_file) as client:
        _show(_asked(client, "POST", _path(user, "ban"), body), as_json)


@app.command()
def unban(
    user: User,
    reason: Reason,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Lift whatever level a user has; what led to it does not count again."""
    with _client(url, key_file) as client:
        _show(_asked(client, "POST", _path(user, "unban"), {"reason": reason}), as_json)


@app.command("level")
def set_level(
    user: User,
    level: Annotated[str, typer.Argument(help=f"One of {', '.join(LEVELS)}.")],
    reason: Reason,
    lasts: For = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Put a user on a level."""
    body = {"level": level, "reason": reason, **_seconds(lasts)}
    with _client(url, key_file) as client:
        _show(_asked(client, "POST", _path(user, "level"), body), as_json)


@app.command()
def forget(
    user: User, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: Json = False
) -> None:
    """Erase what is kept of a user. A ban stays, as a bare id, until it is lifted."""
    with _client(url, key_file) as client:
        _show(_asked(client, "DELETE", _path(user)), as_json)


def _client(url: str, key_file: Path | None) -> httpx.Client:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("--url takes http://HOST:PORT or https://HOST")
    local = is_loopback(parts.hostname)
    if parts.scheme == "http" and not local:
        note = f"note: the key goes to {parts.hostname} unencrypted; use https"
        Console(stderr=True).print(escape(note), highlight=False)
    key = _key(key_file)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # A proxy of the environment is no way to this machine itself.
    return httpx.Client(
        base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT_S, trust_env=not local
    )


def _key(key_file: Path | None) -> str | None:
    if key_file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = key_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key_file} can't be read: {type(error).__name__}") from None
    if not key or not key.isprintable():
        raise ConfigError(f"{key_file} has no key in it")
    return key


def _path(user: str, act: str = "") -> str:
    principal_id = f"key:{user}" if _KEY_ID.fullmatch(user) else user
    return f"/vauban/users/{quote(principal_id, safe='')}" + (f"/{act}" if act else "")


def _seconds(lasts: str | None) -> dict[str, int]:
    if lasts is None:
        return {}
    match = _DURATION.fullmatch(lasts)
    if match is None:
        raise ConfigError("--for takes 30s, 10m, 12h, 7d or 4w")
    return {"seconds": int(match.group(1)) * _SECONDS[match.group(2)]}


def _pages(client: httpx.Client, level: str | None, limit: int) -> Iterator[dict[str, Any]]:
    after: str | None = ""
    while after is not None and limit > 0:
        query = {
            "limit": str(min(limit, _PAGE)),
            "after": after,
            **({"level": level} if level else {}),
        }
        page = _asked(client, "GET", "/vauban/users", query=query)
        yield from page["users"]
        limit -= len(page["users"])
        after = page["next"]


def _asked(
    client: httpx.Client, method: str, path: str, body: Any = None,
    query: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """:raises UsersFailed: with what the server says."""
    try:
        response = client.request(method, path, json=body, params=query)
        answer = response.json()
    except httpx.HTTPError as error:
        raise UsersFailed(f"{client.base_url}: {type(error).__name__}: {error}") from None
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    said = told.get("message") if isinstance(told, dict) else None
    raise UsersFailed(f"the server answers {response.status_code}: {said or 'no guarded server?'}")


def _show(user: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(user)
        return
    console = Console()
    if not user.get("current", True):
        Console(stderr=True).print("note: the store is lost; this is what was last known")
    for name in ("id", "level", "since", "until", "by", "reason", "found", "decided", "evidence"):
        value = user.get(name)
        if value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
            console.print(f"{name:9} {_safe(text)}", highlight=False, soft_wrap=True)


def _row(user: dict[str, Any]) -> tuple[str, ...]:
    evidence = user.get("evidence") or {}
    score = evidence.get("score")
    return (
        str(user["id"]), str(user["level"]), str(user["until"] or ""), str(user["by"]),
        "" if score is None else f"{score:.3f}", str(user["reason"]),
    )  # fmt: skip


def _safe(text: str) -> str:
    """Text for a terminal: no markup of ours, no control sequence of anybody's."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
