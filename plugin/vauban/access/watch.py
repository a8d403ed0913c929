"""Files that decide who may call: read with care, and read again when they change.

A changed file takes effect within a second, so that revoking a key needs no restart. A file that
goes missing or turns bad refuses everybody until it is good again. The other choice, to keep the
last good state, would let a revoked key work for as long as nobody reads the log; `vauban keys`
replaces the file in one step, so a half-written one is no reason to keep it.

Who may write the file decides who may call: it must belong to the server's user or to root, and
nobody else may write to it. Being readable only earns a warning: it holds hashes of random
secrets, and mounted secrets are often readable by all.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from vauban.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Fingerprint = tuple[int, int, int, int, int]

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
CHECK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class FileContent:
    """What was read, and the state of the very file it was read from."""

    data: bytes
    status: os.stat_result


def read_trusted_file(path: Path) -> FileContent:
    """Read a file that others can't have written.

    :raises ConfigError: missing, unreadable, not a regular file, too large, or writable by others.
    """
    try:
        # O_NONBLOCK: a named pipe in this place must not hang the server.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Checked on the open file: a path could be swapped between the check and the read.
            status = os.fstat(descriptor)
            _require_trusted(path, status)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return FileContent(data, status)


def _require_trusted(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a regular file")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} can be written by other users; run: chmod go-w {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path} belongs to user {status.st_uid}, who could add keys to it; it must belong"
            f" to root or to user {os.geteuid()}, who runs this"
        )


class WatchedFile(Generic[T]):
    """A parsed file that follows its changes.

    :param parse: raises `ConfigError` for content it can't use.
    :param clock: monotonic seconds.
    :param private: warn when others can read the file.
    :raises ConfigError: at construction, when the file is not usable.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], T],
        *,
        clock: Callable[[], float],
        private: bool,
    ) -> None:
        self._path = path
        self._parse = parse
        self._clock = clock
        self._private = private
        self._fingerprint: Fingerprint | None = None
        self._checked_at = clock()
        self._value: T | None = self._load()

    def current(self) -> T | None:
        """The content as of at most `CHECK_EVERY_S` ago; None while the file is not usable."""
        now = self._clock()
        if now - self._checked_at < CHECK_EVERY_S:
            return self._value
        self._checked_at = now
        try:
            fingerprint = _fingerprint(self._path.stat())
        except OSError:
            fingerprint = None
        if fingerprint is not None and fingerprint == self._fingerprint:
            return self._value
        if fingerprint is None and self._fingerprint is None:
            return None
        self._reload(fingerprint)
        return self._value

    def _reload(self, seen: Fingerprint | None) -> None:
        try:
            self._value = self._load()
        except ConfigError as error:
            self._value = None
            self._fingerprint = seen
            logger.error("all callers are refused until this is repaired: %s", error)
        else:
            logger.info("%s changed and was read again", self._path)

    def _load(self) -> T:
        content = read_trusted_file(self._path)
        try:
            value = self._parse(content.data)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {error}") from None
        self._fingerprint = _fingerprint(content.status)
        if self._private and content.status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
            logger.warning("%s can be read by other users; chmod 600 is enough", self._path)
        return value


def _fingerprint(status: os.stat_result) -> Fingerprint:
    """Changes with every write, replacement, and change of owner or mode."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
