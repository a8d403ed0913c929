"""The real tritonserver from PyPI: installed beside the environment, and started.

The wheel `nvidia-pytriton` carries the server, its Python backend and one backend stub per Python
version. The stub was built against numpy 1, and under numpy 2 it hands out damaged tensors; so the
server gets a small environment of its own, inside this one, with a numpy of its own in front and
everything else of this environment behind it. Where NVIDIA's image brings a tritonserver, that one
is used as it is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vauban.access.identity import Identity, require_safe_bind
from vauban.errors import ConfigError
from vauban.hosts.triton.callers import BIND_VARIABLE, FORWARD_PATTERN
from vauban.mark import SECRET_VARIABLE
from vauban.policy import Policy

PACKAGES: Final = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
IMAGE: Final = Path("/opt/tritonserver")
ADMIN_VARIABLE: Final = "VAUBAN_TRITON_ADMIN_KEY"
ADMIN_HEADER: Final = "x-vauban-admin"
RESTRICTED: Final = "shared-memory,model-repository,trace,logging"
"""Triton's own APIs that could read or change what other callers do."""
START_TIMEOUT_S: Final = 600
_MAX_PYTHON: Final = (3, 12)


@dataclass(frozen=True)
class Ports:
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass(frozen=True, slots=True)
class Server:
    """`binary` and `backends`: the server's. `python`: the environment that models run in, None
    for the system's; `libraries`: where the binaries find theirs."""

    binary: Path
    backends: Path
    python: Path | None = None
    libraries: tuple[Path, ...] = ()


def home() -> Path:
    """Where the server's own environment is."""
    return Path(sys.prefix) / "triton"


def install() -> Path:
    """Make the server's environment; one that is complete is kept.

    :raises ConfigError: this Python has no numpy 1 or no shared library, or the packages can't be
        installed.
    """
    if sys.version_info[:2] > _MAX_PYTHON:
        raise ConfigError("the tritonserver on PyPI needs numpy 1, so Python 3.11 or 3.12")
    target = home()
    if (target / "complete").is_file():
        return target
    library = sysconfig.get_config_var("INSTSONAME") or ""
    beside = Path(sysconfig.get_config_var("LIBDIR") or "/") / library
    version = "python{}.{}".format(*sys.version_info)
    if not (library.startswith("lib") and beside.is_file()) and not find_library(version):
        raise ConfigError(
            f"there is no shared library of this Python; on Debian and Ubuntu: apt install"
            f" lib{version}"
        )
    shutil.rmtree(target, ignore_errors=True)
    venv.create(target, symlinks=True, with_pip=False)
    python = str(target / "bin" / "python")
    uv = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
    tool = [uv, "pip", "install", "--python", python] if uv else [
        sys.executable, "-m", "pip", "--python", python, "install"
    ]  # fmt: skip
    done = subprocess.run([*tool, "--quiet", "--no-deps", *PACKAGES], check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"{' '.join(PACKAGES)} could not be installed")
    site = _site(target)
    behind = [path for path in sys.path if Path(path).is_dir() and _is_ours(Path(path))]
    (site / "vauban.pth").write_text("\n".join(behind) + "\n")
    backend = target / "backends" / "python"
    backend.mkdir(parents=True)
    shipped = site / "pytriton" / "tritonserver"
    stub = shipped / "python_backend_stubs" / "{}.{}".format(*sys.version_info)
    for file in (*(shipped / "backends" / "python").iterdir(), *stub.iterdir()):
        if file.is_file():
            (backend / file.name).symlink_to(file)
    (shipped / "bin" / "tritonserver").chmod(0o755)
    (stub / "triton_python_backend_stub").chmod(0o755)
    (target / "complete").touch()
    return target


def find_server() -> Server:
    """:raises ConfigError: there is none."""
    if (IMAGE / "bin" / "tritonserver").is_file():
        return Server(IMAGE / "bin" / "tritonserver", IMAGE / "backends")
    target = home()
    if not (target / "complete").is_file():
        raise ConfigError("there is no tritonserver here; `vauban triton install` installs it")
    site = _site(target)
    return Server(
        site / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        target / "backends",
        target,
        (site / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))),
    )


def server_command(
    server: Server,
    repository: Path,
    policy: Policy,
    *,
    address: str,
    ports: Ports,
    environ: Mapping[str, str] = os.environ,
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of a server on this repository.

    :raises ConfigError: without keys or a trusted network it may listen on loopback only.
    """
    if not policy.identity.trusted_network:
        require_safe_bind(Identity(policy.identity), address)
    given = {SECRET_VARIABLE: secrets.token_hex(32), **environ, BIND_VARIABLE: address}
    admin = given.pop(ADMIN_VARIABLE, None) or secrets.token_hex(32)
    if server.python is not None:
        # The backend's interpreter finds its environment by the first python3 in PATH.
        given["PATH"] = f"{server.python / 'bin'}:{given.get('PATH', os.defpath)}"
        given.pop("PYTHONHOME", None)
    if server.libraries:
        paths = [*map(str, server.libraries), *filter(None, [given.get("LD_LIBRARY_PATH")])]
        given["LD_LIBRARY_PATH"] = ":".join(paths)
    command = [
        str(server.binary),
        f"--model-repository={repository}",
        f"--backend-directory={server.backends}",
        f"--backend-config=python,stub-timeout-seconds={START_TIMEOUT_S}",
        "--model-control-mode=explicit", "--load-model=*",
        f"--http-address={address}", f"--http-port={ports.http}",
        f"--grpc-address={address}", f"--grpc-port={ports.grpc}",
        f"--metrics-address={address}", f"--metrics-port={ports.metrics}",
        f"--http-header-forward-pattern={FORWARD_PATTERN}",
        f"--grpc-header-forward-pattern={FORWARD_PATTERN}",
        f"--http-restricted-api={RESTRICTED}:{ADMIN_HEADER}={admin}",
        f"--grpc-restricted-protocol={RESTRICTED}:{ADMIN_HEADER}={admin}",
    ]  # fmt: skip
    return command, given


def _site(target: Path) -> Path:
    version = "python{}.{}".format(*sys.version_info)
    return target / "lib" / version / "site-packages"


def _is_ours(path: Path) -> bool:
    """Not the standard library, which the other environment has already, and no scripts."""
    return (
        path.resolve()
        not in {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
        and path.name != "lib-dynload"
    )
