"""`vauban sandbox`: build the guest's image, run a program in it, offer it to a model server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

from vauban.errors import BadJob
from vauban.policy import Policy
from vauban.policy_sources import load_policy

app = typer.Typer(
    help="Run code that a model wrote in a virtual machine that is thrown away.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy file; default: what VAUBAN_POLICY names.")
]


@app.command()
def build(
    policy_file: PolicyFile = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory; default: sandbox.image, or in the environment.")
    ] = None,
) -> None:
    """Build the guest's image from Debian's packages (half a minute, 40 MB to download)."""
    from vauban.agents.image import default_directory
    from vauban.agents.image_build import build_image

    place = out or load_policy(file=policy_file).policy.sandbox.image or default_directory()
    digest = build_image(place)
    Console(stderr=True).print(f"{place}: manifest sha256 {digest}", highlight=False)


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    file: Annotated[Path, typer.Argument(help="Python program.", exists=True, dir_okay=False)],
    put: Annotated[
        list[Path] | None, typer.Option(help="File to put beside it; may be repeated.")
    ] = None,
    take: Annotated[
        list[str] | None, typer.Option(help="Name of a file to take out; may be repeated.")
    ] = None,
    into: Annotated[Path, typer.Option(help="Directory for files that are taken out.")] = Path(),
    policy_file: PolicyFile = None,
) -> None:
    """Run one program. Prints what it prints, then a line about it; exits with its status."""
    from vauban.agents.frames import Job
    from vauban.agents.sandbox import Sandbox

    policy = load_policy(file=policy_file).policy.sandbox.model_copy(update={"pool": 0})
    files = {path.name: _bytes(path, policy.max_input_bytes) for path in put or ()}
    job = Job(_bytes(file, policy.max_code_bytes), files, tuple(take or ()), file.name)
    job.check(policy)
    with Sandbox(policy, canary=False) as sandbox:
        result = sandbox.run(job)
    _pass_on(result.out, sys.stdout)
    _pass_on(result.err, sys.stderr)
    for name, data in result.files.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(into / name, flags, 0o600), "wb") as stream:
                stream.write(data)
        except OSError as error:
            raise BadJob(f"{into / name} can't be written: {error.strerror}") from None
    console = Console(stderr=True)
    for name, why in result.missing.items():
        console.print(f"vauban: no {name}: {why}", highlight=False, markup=False)
    console.print(f"vauban: {result.summary()}", highlight=False, soft_wrap=True)
    raise typer.Exit(result.status)


@app.command()
def status(policy_file: PolicyFile = None) -> None:
    """Say which isolation this machine has, why no better one, and check that it is tight."""
    from vauban.agents import cgroup
    from vauban.agents.sandbox import Sandbox

    policy = load_policy(file=policy_file).policy.sandbox.model_copy(update={"pool": 0})
    with Sandbox(policy) as sandbox:
        console = Console()
        console.print(f"tier: {sandbox.tier.name}", highlight=False)
        for line in sandbox.tier.passed_over:
            console.print(f"not {line}", highlight=False, markup=False, soft_wrap=True)
        if policy.runner == "local":
            kind = cgroup.version()
            limits = f"control group {kind}" if kind != "none" else "resource limits only"
            console.print(f"limited by: {limits}", highlight=False)


@app.command()
def serve(
    policy_file: PolicyFile = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8765,
    credentials: Annotated[
        Path | None, typer.Option(help="File with NAME:SECRET; default: drawn and printed.")
    ] = None,
) -> None:
    """Offer the sandbox as the model server's `python` tool (MCP)."""
    from vauban.agents.tool_server import read_credentials, serve_tool

    serve_tool(_policy(policy_file), read_credentials(credentials), host, port)


def _pass_on(data: bytes, stream: TextIO) -> None:
    """To a file or a pipe as it is; to a terminal without anything that the terminal would obey."""
    if stream.isatty():
        text = data.decode(errors="replace")
        data = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text).encode()
    stream.buffer.write(data)
    stream.flush()


def _policy(file: Path | None) -> Policy:
    return load_policy(file=file).policy


def _bytes(path: Path, most: int) -> bytes:
    """At most one byte more than allowed, so that the check of the job can say so."""
    try:
        with path.open("rb") as stream:
            return stream.read(most + 1)
    except OSError as error:
        raise BadJob(f"{path} can't be read: {error.strerror}") from None
