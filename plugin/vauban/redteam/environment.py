"""The tools' own environments: their pins clash with the server's, so each gets one of its own.

Made with uv on first use, from whatever index uv is configured with, in the user's cache
directory. An environment that is not finished is never used: its stamp is written last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from vauban.errors import ToolFailed

INSTALL_TIMEOUT_S = 1_800
VERSIONS = {"garak": "0.17.1", "llm-guard": "0.3.16", "pyrit": "1.1.0"}
_TAIL_CHARS = 1_500


def cache_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where the environments are: `$XDG_CACHE_HOME/vauban/redteam`, by default under `~/.cache`."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vauban" / "redteam"


def python_of(tool: str, console: Console) -> Path:
    """The interpreter that has `tool`; the environment is made when it is not there.

    :raises ToolFailed: uv is missing, or the installation failed or took too long.
    """
    wanted = f"{tool}=={VERSIONS[tool]}"
    directory = cache_directory() / f"{wanted}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, stamp = directory / "bin" / "python", directory / "vauban-complete"
    if stamp.is_file() and python.exists():
        return python
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory.parent / f"{directory.name}.lock"):
        if not (stamp.is_file() and python.exists()):
            with console.status(f"Installing {wanted} into {directory}, once"):
                _install(wanted, directory)
            stamp.write_text(wanted)
    return python


def tool_environ(scratch: Path) -> dict[str, str]:
    """What a tool gets to see: no key of the user's, no network but the relay, no files outside
    the scratch directory."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    places = {f"XDG_{kind}_HOME": str(scratch / kind) for kind in ("CONFIG", "DATA", "CACHE")}
    return {
        **kept, **places, "HOME": str(scratch), "TMPDIR": str(scratch),
        "HF_HOME": str(scratch / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def _install(wanted: str, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    uv, environ = _uv(), _environ()
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(directory)], environ)
    install = [uv, "pip", "install", "--quiet", "--python", str(directory / "bin" / "python")]
    pinned = directory / "constraints.txt"
    pinned.write_text(_own_torch())
    try:
        _run([*install, "--constraints", str(pinned), wanted], environ)
    except ToolFailed:
        # The torch beside vauban does not suit the tool, or the index does not have it.
        _run([*install, wanted], environ)


def _own_torch() -> str:
    """The torch that is installed here: on a CPU host it spares the tools the CUDA build."""
    try:
        return f"torch=={version('torch')}\n"
    except PackageNotFoundError:
        return ""


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise ToolFailed("uv is not installed; pip install 'vauban[redteam]'")
    return found


def _environ() -> dict[str, str]:
    environ = dict(os.environ)
    environ.pop("VIRTUAL_ENV", None)
    if links := environ.get("PIP_FIND_LINKS"):  # local wheels that pip is told of suit uv, too
        environ.setdefault("UV_FIND_LINKS", ",".join(links.split()))
    return environ


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own uv, no shell
            command, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=INSTALL_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"uv took longer than {INSTALL_TIMEOUT_S} s") from None
    except OSError as error:
        raise ToolFailed(f"uv can't be started: {error.strerror}") from None
    if done.returncode:
        raise ToolFailed(f"uv failed:\n{done.stderr[-_TAIL_CHARS:]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One installation at a time; the second then finds it done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
