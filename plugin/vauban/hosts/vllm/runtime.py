"""What the processes of one server share: a secret and a private directory.

Made once by the first process that loads vauban and inherited through the environment by the
engine and by further API servers, which vLLM starts as its children.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vauban.errors import ConfigError
from vauban.mark import SECRET_VARIABLE, Sealer

DIRECTORY_VARIABLE = "VAUBAN_RUNTIME_DIR"
# Names, with commas between them, of the variables that were made here and not given.
MADE_VARIABLE = "VAUBAN_RUNTIME_MADE"


@dataclass(frozen=True, slots=True)
class Runtime:
    """`given`: the secret is the operator's, so it will be the same after a restart."""

    sealer: Sealer
    directory: Path
    given: bool


def open_runtime() -> Runtime:
    """The runtime of this server; made now if no parent process made it. Idempotent.

    :raises ConfigError: the inherited secret is malformed or the directory is not private.
    """
    if SECRET_VARIABLE not in os.environ:
        _make(SECRET_VARIABLE, secrets.token_hex(32))
    if DIRECTORY_VARIABLE not in os.environ:
        made = tempfile.mkdtemp(prefix="vauban-")  # mode 0700
        _make(DIRECTORY_VARIABLE, made)
        atexit.register(_remove, made, os.getpid())
    try:
        secret = bytes.fromhex(os.environ[SECRET_VARIABLE])
        sealer = Sealer(secret)
    except ValueError:
        raise ConfigError(
            f"{SECRET_VARIABLE} must be at least 32 hexadecimal digits, the same in every process"
            " of one server; unset it to have one made"
        ) from None
    given = SECRET_VARIABLE not in _made(os.environ)
    return Runtime(sealer, _private(Path(os.environ[DIRECTORY_VARIABLE])), given)


def without_runtime(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a new server: without what was made for the one this process is of.

    Two servers with one directory would take each other's engines for their own.
    """
    made = {*_made(environ), MADE_VARIABLE}
    return {name: value for name, value in environ.items() if name not in made}


def configure_logging() -> None:
    """Show vauban's own log lines (from INFO) in a process whose host configures only its own."""
    logger = logging.getLogger("vauban")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [vauban] %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _made(environ: Mapping[str, str]) -> list[str]:
    return environ.get(MADE_VARIABLE, "").split(",")


def _make(variable: str, value: str) -> None:
    os.environ[variable] = value
    os.environ[MADE_VARIABLE] = ",".join([*filter(None, _made(os.environ)), variable])


def _private(directory: Path) -> Path:
    try:
        status = directory.stat()
    except OSError as error:
        raise ConfigError(f"{DIRECTORY_VARIABLE}: {directory}: {error.strerror}") from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"{DIRECTORY_VARIABLE}: {directory} must belong to this user with mode 0700"
        )
    return directory


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:  # not in forked children
        shutil.rmtree(directory, ignore_errors=True)
