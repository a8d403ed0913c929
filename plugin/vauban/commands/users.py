"""`vauban users`: see and change how a running server treats its users.

A client of the server's own `/vauban/users` routes (README, "Users"), with a key of scope `admin`.
A user is named by principal id (`key:...`, `jwt:...`, `anon:...`) as audit lines have it,
or by a key's id as `vauban keys list` shows it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
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
from vauban.errors import ConfigError
from vauban.types import SERVICE

LEVELS: Final = ("clear", "flagged", "slowed", "degraded", "held", "banned")
_KEY_ID: Final = re.compile(r"[0-9a-z]{12}")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PAGE: Final = 1_000
_PROPOSED: Final = (
    "proposed  service: it samples, as a thief does, and its ways don't change. If you know it,"
    " declare it:\n          vauban keys service NAME (of tokens: identity.jwt_service_claim);"
    " then vauban users unban"
)
MOST_LISTED: Final = 1_000_000
_CAMPAIGN: Final = {
    "score": "campaign", "pooled score": "campaign_pooled", "accounts": "campaign_accounts",
    "queries pooled": "campaign_queries", "mingled": "campaign_mingled",
}  # fmt: skip
"""What is shown of a campaign, and the signal that has it."""

app = typer.Typer(
    help="See, ban, unban and forget users of a running server.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # one of them is the key
)

User = Annotated[str, typer.Argument(help="key:..., jwt:..., anon:..., or the id of a key.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")]
For = Annotated[
    str | None,
    typer.Option("--for", help="30s, 10m, 12h, 7d or 4w; default: as the policy has it."),
]


@app.command("list")
def list_users(
    level: Annotated[str | None, typer.Option(help=f"One of {', '.join(LEVELS[1:])}.")] = None,
    campaign: Annotated[str | None, typer.Option(help="Only its accounts.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="Most users shown.")] = 100,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Show the users that have a level."""
    with connected(url, key_file) as client:
        users = list(_pages(client, limit, level=level, campaign=campaign))
    if as_json:
        print_json({"users": users})
        return
    table = Table(
        Column("user", no_wrap=True),
        "level",
        Column("until", no_wrap=True, min_width=len("2027-01-31T00:00:00Z")),
        *("by", "score", "campaign", "proposed", "reason"),
    )
    for user in users:
        table.add_row(*(safe(cell) for cell in _row(user)))
    Console().print(table)


@app.command("campaigns")
def list_campaigns(url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: Json = False) -> None:
    """Show the groups of linked accounts that were found."""
    with connected(url, key_file) as client:
        campaigns = _campaigns(_pages(client, MOST_LISTED))
    if as_json:
        print_json({"campaigns": campaigns})
        return
    table = Table(Column("campaign", no_wrap=True), *_CAMPAIGN, "users with a level")
    for campaign in campaigns:
        shown = (_number(campaign[name]) for name in _CAMPAIGN)
        table.add_row(*map(safe, (campaign["id"], *shown, str(len(campaign["users"])))))
    Console().print(table)


@app.command()
def explain(
    user: User, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: Json = False
) -> None:
    """Show why a user has the level it has: evidence, decisions, and when they end."""
    with connected(url, key_file) as client:
        _show(asked(client, "GET", _path(user)), as_json)


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
    with connected(url, key_file) as client:
        _show(asked(client, "POST", _path(user, "ban"), body), as_json)


@app.command()
def unban(
    user: User,
    reason: Reason,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Lift whatever level a user has; what led to it does not count again."""
    with connected(url, key_file) as client:
        _show(asked(client, "POST", _path(user, "unban"), {"reason": reason}), as_json)


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
    with connected(url, key_file) as client:
        _show(asked(client, "POST", _path(user, "level"), body), as_json)


@app.command()
def forget(
    user: User, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: Json = False
) -> None:
    """Erase what is kept of a user. A ban stays, as a bare id, until it is lifted."""
    with connected(url, key_file) as client:
        _show(asked(client, "DELETE", _path(user)), as_json)


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


def _pages(client: httpx.Client, limit: int, **wanted: str | None) -> Iterator[dict[str, Any]]:
    after: str | None = ""
    while after is not None and limit > 0:
        query = {
            "limit": str(min(limit, _PAGE)),
            "after": after,
            **{name: value for name, value in wanted.items() if value},
        }
        page = asked(client, "GET", "/vauban/users", query=query)
        yield from page["users"]
        limit -= len(page["users"])
        after = page["next"]


def _campaigns(users: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The campaigns that users were found in, by name, each as the one whose level changed last
    was told of it."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for user in users:
        if name := (user.get("evidence") or {}).get("campaign"):
            found[name].append(user)
    campaigns = []
    for name, members in sorted(found.items()):
        latest = max(members, key=lambda user: user["since"] or "")["evidence"]["signals"]
        told = {shown: latest.get(signal) for shown, signal in _CAMPAIGN.items()}
        campaigns.append({"id": name, **told, "users": [user["id"] for user in members]})
    return campaigns


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _show(user: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(user)
        return
    console = Console()
    if not user.get("current", True):
        Console(stderr=True).print("note: the store is lost; this is what was last known")
    for name in ("id", "level", "since", "until", "by", "reason", "found", "decided", "evidence"):
        value = user.get(name)
        if value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
            console.print(f"{name:9} {safe(text)}", highlight=False, soft_wrap=True)
    if (user.get("evidence") or {}).get("proposed") == SERVICE:
        console.print(_PROPOSED, highlight=False, soft_wrap=True)


def _row(user: dict[str, Any]) -> tuple[str, ...]:
    evidence = user.get("evidence") or {}
    score = evidence.get("score")
    return (
        str(user["id"]), str(user["level"]), str(user["until"] or ""), str(user["by"]),
        "" if score is None else f"{score:.3f}", str(evidence.get("campaign", "")),
        str(evidence.get("proposed", "")), str(user["reason"]),
    )  # fmt: skip
