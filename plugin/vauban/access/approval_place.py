"""Where approvals are kept, and the secret that binds them; both must outlive the server."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from vauban.errors import ConfigError
from vauban.policy import IdentityPolicy
from vauban.policy_standing import MEMORY, SQLITE, StatePolicy
from vauban.policy_tools import ToolsPolicy
from vauban.state.store import Store, open_store
from vauban.types import Mode

logger = logging.getLogger(__name__)

_NAME: Final = "approvals"
_SECRET_BYTES: Final = 32


def open_place(
    state: StatePolicy,
    tools: ToolsPolicy,
    *,
    own: bytes,
    given: bool,
    processes: int,
    answers: bool = False,
    deployment: str = "",
) -> tuple[Store, bytes]:
    """The store, not yet connected, and the secret.

    :param own: the server's secret. :param given: it is the operator's, so the next start has it.
    :param processes: API servers that share the store. :param answers: answers are kept, too.
    :param deployment: whose approvers may see what is kept in the default place; another one's have
        a file of their own.
    :raises ConfigError: with what to do about it.
    """
    if tools.mode is Mode.OFF and not answers:  # nothing will be kept
        return open_store(state.model_copy(update={"store": MEMORY})), own
    url = tools.store or _beside(state.store) or _default_url(processes, deployment)
    if url == MEMORY and processes > 1:
        raise ConfigError(
            f"tools.store is {MEMORY}, but there are {processes} API servers: one would not know"
            f" what another holds. Set it to {SQLITE}PATH or to a Valkey server."
        )
    prefix = f"{state.prefix}.approvals"
    store = open_store(state.model_copy(update={"store": url, "prefix": prefix}))
    if given or url == MEMORY:
        return store, own
    if url.startswith(SQLITE):
        return store, _kept_secret(Path("/" + url.removeprefix(SQLITE) + ".key"))
    logger.warning(
        "approvals are bound by a secret that was made for this start: no other server can use"
        " them, nor the next start. Set VAUBAN_SECRET (openssl rand -hex 32)."
    )
    return store, own


def _beside(url: str) -> str | None:
    """For approvals, the place beside where the users' state is; None: that is memory."""
    if url == MEMORY:
        return None
    return f"{url}.approvals" if url.startswith(SQLITE) else url


def deployment_of(identity: IdentityPolicy) -> str:
    """Names whoever shares the keys, and so the approvers; empty without keys."""
    files = [file for file in (identity.keys_file, identity.jwks_file) if file is not None]
    return "\n".join(str(file.resolve()) for file in files)


def _default_url(processes: int, deployment: str) -> str:
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    directory = base / "vauban"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return f"sqlite://{directory / _file_name(deployment)}"
    except (OSError, RuntimeError) as error:
        if processes > 1:
            raise ConfigError(
                f"approvals can't be kept in {directory}: {error}; set tools.store"
            ) from None
        logger.warning(
            "approvals are kept in memory and lost with this process: %s can't be written; set"
            " tools.store",
            directory,
        )
        return MEMORY


def _file_name(deployment: str) -> str:
    own = hashlib.sha256(deployment.encode()).hexdigest()[:12]
    return f"{_NAME}-{own}.db" if deployment else f"{_NAME}.db"


def _kept_secret(path: Path) -> bytes:
    """The secret in a file, made by whoever is first.

    :raises ConfigError: it can't be read or written, or others may read it.
    """
    try:
        if not path.exists():
            _write_secret(path)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: only its owner may read it (chmod 600)")
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; set VAUBAN_SECRET or tools.store") from None
    if len(secret) < _SECRET_BYTES:
        raise ConfigError(f"{path}: not a secret; remove it to have one made")
    return secret


def _write_secret(path: Path) -> None:
    handle, written = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another server was first: its secret counts
            os.link(written, path)
    finally:
        Path(written).unlink()
