"""The policy of what happens to a user whom a detector or an operator has something against."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import field_validator

from vauban.policy_base import Section, field
from vauban.types import Mode

MEMORY = "memory"
SQLITE = "sqlite:///"
VALKEY_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")
PASSWORD_VARIABLE = "VAUBAN_STATE_PASSWORD"  # noqa: S105 - the name of the variable

_DAY_S = 86_400
_LONGEST_S = 3650 * _DAY_S
_STORE = re.compile(rf"{MEMORY}|{SQLITE}.+|(?:{'|'.join(VALKEY_SCHEMES)})://.+")


class StatePolicy(Section):
    """Where it is kept how each user is treated."""

    store: str = field(
        MEMORY,
        "memory (lost with the process, one API server only), sqlite:///var/lib/vauban/state.db (a"
        " file; several processes of one machine), or a Valkey or Redis server: redis://host:6379/0,"
        " valkey://, rediss:// and valkeys:// with TLS, unix:///path/to/socket. No password in it:"
        f" that comes from password_file or {PASSWORD_VARIABLE}.",
    )
    password_file: Path | None = field(
        None, f"File with the password of the Valkey server; default: {PASSWORD_VARIABLE}, or none."
    )
    prefix: str = field(
        "vauban",
        "First part of every name in the Valkey server; one for each deployment that shares it.",
        pattern=r"^[0-9A-Za-z._-]{1,64}$",
    )
    timeout_ms: int = field(
        1_000, "Longest wait for an answer of the store.", "milliseconds", ge=10, le=60_000
    )
    refresh_ms: int = field(
        1_000,
        "How often an API server asks the store for what others have changed; a ban works"
        " everywhere after this time.",
        "milliseconds",
        ge=20,
        le=60_000,
    )
    stale_after_ms: int = field(
        10_000,
        "When the store has given no answer for so long, it counts as lost.",
        "milliseconds",
        ge=100,
        le=3_600_000,
    )
    on_failure: Literal["block", "degrade", "allow"] = field(
        "block",
        "While the store is lost: refuse every caller (503), treat every caller as degraded or"
        " worse, or go on with what was last known.",
    )
    max_users: int = field(
        100_000,
        "Most users that are remembered. Beyond it the least suspicious are forgotten, never one"
        " who is held or banned.",
        "users",
        ge=1,
        le=10_000_000,
    )
    retention_days: int = field(
        30, "How long what was counted about a user is kept after the last request.", "days",
        ge=1, le=3_650,
    )  # fmt: skip

    @field_validator("store")
    @classmethod
    def _known_store(cls, url: str) -> str:
        return check_store(url)


def check_store(url: str) -> str:
    """:raises ValueError: not the address of a store, or one with a password in it."""
    if not _STORE.fullmatch(url):
        raise ValueError("not one of memory, sqlite:///PATH, redis://, valkey://, unix://")
    if url == MEMORY or url.startswith(SQLITE):
        return url
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    if port == 0:
        raise ValueError("not a port")
    if parts.password is not None or "password" in dict(parse_qsl(parts.query)):
        raise ValueError(f"no password here; put it in password_file or {PASSWORD_VARIABLE}")
    return url


Ceiling = Literal["flagged", "slowed", "degraded", "held", "banned"]


class ResponsePolicy(Section):
    """How users are treated at each level. A level that ends falls to the next lower one."""

    mode: Mode = field(
        Mode.ENFORCE, "enforce; monitor: headers, metrics and audit only; off: nobody has a level."
    )
    person_ceiling: Ceiling = field("banned", "Worst that a detector may do to a person.")
    anonymous_ceiling: Ceiling = field(
        "flagged",
        "Worst that a detector may do to a caller without a credential, known by address only:"
        " several people may share it.",
    )
    service_ceiling: Ceiling = field(
        "degraded", "Worst that a detector may do to a key declared as a service."
    )
    flagged_s: int = field(
        7 * _DAY_S, "How long flagged lasts after the last evidence.", "seconds",
        ge=1, le=_LONGEST_S,
    )  # fmt: skip
    slowed_s: int = field(
        _DAY_S, "How long slowed lasts; then flagged.", "seconds", ge=1, le=_LONGEST_S
    )
    degraded_s: int = field(
        _DAY_S, "How long degraded lasts; then slowed.", "seconds", ge=1, le=_LONGEST_S
    )
    banned_s: int = field(
        7 * _DAY_S, "How long a ban lasts if nothing else is said; then degraded.", "seconds",
        ge=1, le=_LONGEST_S,
    )  # fmt: skip
    slow_factor: float = field(
        0.1, "What the rate limits of a slowed user are multiplied by.", "share", ge=0.001, le=1.0
    )
    slow_requests_per_min: int = field(
        10,
        "Ceiling of a slowed user who has no rate limit of their own.",
        "requests/minute",
        ge=1,
        le=1_000_000,
    )
    slow_priority: int = field(
        100,
        "Scheduling priority of a slowed user's requests (vLLM: higher waits longer; others have"
        " 0), where the server runs --scheduling-policy priority.",
        "priority",
        ge=1,
        le=1_000_000_000,
    )
