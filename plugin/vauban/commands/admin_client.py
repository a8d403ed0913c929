"""How a command talks to the guard's own routes of a running server.

The key comes from `--key-file` or VAUBAN_KEY; never from an argument, which other users of a
machine can see.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from vauban.access.identity import is_loopback
from vauban.errors import ConfigError, VaubanError

KEY_VARIABLE: Final = "VAUBAN_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8000"
_TIMEOUT_S: Final = 30.0

Url = Annotated[str, typer.Option("--url", help="The guarded server.")]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", help=f"File with a key that has the scope; default: {KEY_VARIABLE}."
    ),
]


class ServerRefused(VaubanError):
    """The server refused, or did not answer."""


def checked_url(url: str) -> bool:
    """Whether the server is on this machine; says so where keys would be sent in the clear.

    :raises ConfigError: not the address of a server.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("--url takes http://HOST:PORT or https://HOST")
    local = is_loopback(parts.hostname)
    if parts.scheme == "http" and not local:
        note = f"note: the key goes to {parts.hostname} unencrypted; use https"
        Console(stderr=True).print(escape(note), highlight=False)
    return local


def connected(url: str, key_file: Path | None) -> httpx.Client:
    local = checked_url(url)
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


def asked(
    client: httpx.Client, method: str, path: str, body: Any = None,
    query: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """:raises ServerRefused: with what the server says."""
    try:
        response = client.request(method, path, json=body, params=query)
        answer = response.json()
    except httpx.HTTPError as error:
        raise ServerRefused(f"{client.base_url}: {type(error).__name__}: {error}") from None
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    said = told.get("message") if isinstance(told, dict) else None
    raise ServerRefused(
        f"the server answers {response.status_code}: {said or 'no guarded server?'}"
    )


def safe(text: str) -> str:
    """Text for a terminal: no markup of ours, no control sequence of anybody's."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
