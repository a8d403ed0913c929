"""`vauban triton`: install the server, write a model repository, serve it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vauban.commands.serve import LOOPBACK
from vauban.hosts.triton.render import LlmBackend, Models, render
from vauban.hosts.triton.server import Ports, find_server, install, server_command
from vauban.policy_sources import load_policy
from vauban.standin import MAX_MODEL_LEN, make_standin

app = typer.Typer(help="The guard in NVIDIA Triton.", no_args_is_help=True)

PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy file; default: what VAUBAN_POLICY names.")
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Model directory; default: a stand-in.")
]
Length = Annotated[
    int, typer.Option("--max-model-len", min=0, help="Context of the model in tokens.")
]


@app.command("install")
def install_server() -> None:
    """Install the real tritonserver from PyPI beside this environment (Python 3.11 and 3.12)."""
    Console(stderr=True).print(f"tritonserver is in {install()}", highlight=False)


@app.command("render")
def render_repository(
    out: Annotated[Path, typer.Option(help="Directory for the model repository.")],
    model: Annotated[
        str, typer.Option(help="Model directory or name, as the server will see it.")
    ] = "",
    policy_file: PolicyFile = None,
    max_model_len: Length = 0,
    llm: Annotated[
        LlmBackend, typer.Option(help="python: vLLM in a model of ours; vllm: Triton's backend.")
    ] = LlmBackend.PYTHON,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Run the encoder by Triton's ONNX Runtime backend.")
    ] = False,
) -> None:
    """Write a model repository with every policy field in the models' config.pbtxt."""
    render(out, load_policy(file=policy_file).policy, Models(model, max_model_len, llm, onnx))
    Console(stderr=True).print(f"written to {out}", highlight=False)


@app.command("serve")
def serve(
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = Ports.http,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = Ports.grpc,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = Ports.metrics,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = LOOPBACK,
    model_repository: Annotated[
        Path | None,
        typer.Option(help="Any model repository; default: one written now.", exists=True),
    ] = None,
    model: ModelOption = None,
    max_model_len: Length = 0,
    policy_file: PolicyFile = None,
) -> None:
    """Start tritonserver with the guarded models. Ctrl-C ends it."""
    policy = load_policy(file=policy_file).policy
    with tempfile.TemporaryDirectory(prefix="vauban-triton-") as scratch:
        if model_repository is None:
            model_repository = Path(scratch) / "models"
            given = Models(str(model), max_model_len) if model else standin(Path(scratch))
            render(model_repository, policy, given)
        command, environ = server_command(
            find_server(),
            model_repository,
            policy,
            address=address,
            ports=Ports(http_port, grpc_port, metrics_port),
        )
        # A session of its own: Ctrl-C must not reach the models before the server says so.
        process = subprocess.Popen(command, env=environ, start_new_session=True)  # noqa: S603
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: process.terminate())
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # an engine that outlived a model's process
    raise typer.Exit(code if code >= 0 else 128 - code)


def standin(directory: Path) -> Models:
    """The stand-in model, made in `directory`."""
    return Models(str(make_standin(directory / "standin")), MAX_MODEL_LEN)
