"""`vauban console`: the operators' web page for a running guarded server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vauban.commands.admin_client import DEFAULT_URL, Url, checked_url
from vauban.errors import ConfigError
from vauban.policy_sources import load_policy

DEFAULT_PORT = 8088

app = typer.Typer(
    help="A web page for the operators of a running server.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _group() -> None:
    """Keeps `serve` a command of its own, with only one there is."""


@app.command()
def serve(
    url: Url = DEFAULT_URL,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port.")] = DEFAULT_PORT,
    public_url: Annotated[
        str, typer.Option(help="What browsers call it, where that is not loopback: https://NAME.")
    ] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    policy_file: Annotated[
        Path | None,
        typer.Option("--policy", help="Policy file; default: what VAUBAN_POLICY names."),
    ] = None,
) -> None:
    """Serve the console. Sign in with a key of scope `console`."""
    try:
        from vauban.console.serve import server
    except ModuleNotFoundError as error:
        if error.name != "uvicorn":
            raise
        raise ConfigError("the console needs uvicorn; install vauban[console]") from None
    from vauban.console.app import make_app
    from vauban.console.guarded import GuardedServer
    from vauban.console.shield import Place

    policy = load_policy(file=policy_file).policy.console
    local = checked_url(url)
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    for file in (tls_cert, tls_key):
        if file is not None and not file.is_file():
            raise ConfigError(f"{file} can't be read")
    place = Place.at(host, port, tls=tls_cert is not None, public_url=public_url)
    guarded = GuardedServer(url.rstrip("/"), local=local, timeout_ms=policy.timeout_ms)
    running = server(
        make_app(policy, guarded, place), host, port,
        tls_cert=str(tls_cert) if tls_cert else None, tls_key=str(tls_key) if tls_key else None,
    )  # fmt: skip
    where = public_url or f"{'https' if tls_cert else 'http'}://{host}:{port}"
    Console(stderr=True).print(f"the console is at {where}, for {url}", highlight=False)
    running.run()
    if not running.started:
        raise ConfigError(f"the console can't listen on {host}, port {port}")
