"""Real servers, started and stopped: vLLM with the guard, vLLM without it, and other programs.

The baseline is the same vLLM from the same environment in which vauban is not installed. vLLM
loads every installed logits processor whatever its settings say, so switching the guard off would
leave half of it in; instead the baseline sees a folder of links to everything in site-packages
but vauban.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from vauban.commands.serve import server_command
from vauban.standin import make_standin

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 600
SERVED_NAME = "standin"
VLLM_FLAGS = (
    "--enforce-eager", "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "64",
    "--served-model-name", SERVED_NAME, "--uvicorn-log-level", "warning",
)  # fmt: skip


class StartFailed(Exception):
    """A server ended or did not answer in time; the message ends with its last words."""


@dataclass
class Server:
    """A running server and its child processes."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def root(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def children(self) -> list[psutil.Process]:
        return list(self.root.children(recursive=True))

    def cpu_s(self) -> float:
        """Processor seconds of all its processes so far."""
        times = [process.cpu_times() for process in (self.root, *self.children())]
        return sum(time.user + time.system for time in times)

    def pause(self) -> None:
        """Stop its processes, so that an idle server takes nothing from the one measured."""
        for process in (self.root, *self.children()):
            process.suspend()

    def resume(self) -> None:
        for process in (*self.children(), self.root):
            process.resume()

    def stop(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.resume()
        _signal_group(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            _signal_group(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@contextlib.contextmanager
def guarded_vllm(directory: Path, flags: Sequence[str] = ()) -> Iterator[Server]:
    """vLLM with both halves of the guard, as `vauban serve` starts it."""
    port = free_port()
    model = str(make_standin(directory / "model"))
    command, environ = server_command(model, [*VLLM_FLAGS, "--port", str(port), *flags])
    environ["XDG_STATE_HOME"] = str(directory)
    with running(command, environ, port, directory / "guarded.log") as server:
        yield server


@contextlib.contextmanager
def plain_vllm(directory: Path, flags: Sequence[str] = ()) -> Iterator[Server]:
    """The same vLLM, the same flags; vauban is not installed."""
    port = free_port()
    model = str(make_standin(directory / "model"))
    own = [*VLLM_FLAGS, "--port", str(port), "--host", LOOPBACK, *flags]
    with_guard, _ = server_command(model, own)
    environ = {**os.environ, "PYTHONPATH": str(_packages_without_vauban(directory))}
    command = [with_guard[0], "-S", *with_guard[1:]]
    with running(command, environ, port, directory / "plain.log") as server:
        if "vauban.hosts" in server.log.read_text(errors="replace"):
            raise StartFailed("the baseline has vauban in it")
        yield server


@contextlib.contextmanager
def uvicorn_app(
    factory: str, directory: Path, environ: Mapping[str, str], path: str = "/health"
) -> Iterator[Server]:
    """:param factory: `module:function` that makes the application."""
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "--factory", factory, "--port", str(port),
        "--log-level", "warning",
    ]  # fmt: skip
    log = directory / f"{factory.rpartition(':')[2]}-{port}.log"
    with running(command, {**os.environ, **environ}, port, log, path) as server:
        yield server


@contextlib.contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], port: int, log: Path, path: str = "/health"
) -> Iterator[Server]:
    """Start a server in a process group of its own and wait until `path` answers."""
    environ = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **environ}
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command), env=dict(environ), stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    server = Server(f"http://{LOOPBACK}:{port}", process, log)
    try:
        _wait_until_ready(server, path)
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Server, path: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise StartFailed(server.log.read_text(errors="replace")[-2000:])
        if _answers(server.url + path):
            return
        time.sleep(0.5)
    raise StartFailed(f"no answer in {START_TIMEOUT_S} s: {server.log}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
            return True
    except OSError:
        return False


def _packages_without_vauban(directory: Path) -> Path:
    """Links to all installed packages but vauban; no metadata of it, so no entry points."""
    target = directory / "packages"
    if target.is_dir():
        return target
    target.mkdir(parents=True)
    spec = importlib.util.find_spec("vllm")  # not imported: that takes many seconds
    assert spec is not None
    assert spec.origin is not None
    for entry in Path(spec.origin).parents[1].iterdir():
        if "vauban" not in entry.name.lower() and entry.suffix != ".pth":
            (target / entry.name).symlink_to(entry)
    return target


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
