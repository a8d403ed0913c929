"""Changing the key store: one writer at a time, and never a half-written file.

The file is replaced in one step, so a running server reads either the old or the new store. A
lock beside it (`<file>.lock`) makes two `vauban keys add` wait for each other instead of losing
one key. A store that exists keeps its owner and its read permissions: an administrator who adds
a key as root must not lock out the server's own user.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from vauban.access.keys import (
    MAX_KEYS,
    KeyFile,
    KeyRecord,
    NewKey,
    key_digest,
    mint_key,
    parse_key_file,
)
from vauban.access.scopes import opens_a_route, parse_scopes
from vauban.access.watch import FileContent, read_trusted_file
from vauban.errors import ConfigError
from vauban.types import RateLimit

LOCK_TIMEOUT_S: Final = 10.0
_READ_BITS: Final = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH


def read_key_file(path: Path) -> KeyFile:
    """:raises ConfigError: missing, unusable or writable by others."""
    return _parse(path, read_trusted_file(path))


def add_key(
    path: Path,
    name: str,
    scopes: Iterable[str],
    *,
    created: datetime,
    expires: datetime | None,
    limit: RateLimit,
    service: bool = False,
    group: str | None = None,
) -> tuple[NewKey, KeyRecord]:
    """Mint a key and store its hash; the file is created where there is none.

    :param service: it belongs to a program that serves many people.
    :param group: whom it is issued to together with other keys.
    :raises ConfigError: the name is taken or a value is not allowed; the store is then unchanged.
    """
    checked = parse_scopes(scopes)
    if not opens_a_route(checked):
        raise ConfigError("these scopes open no route; add `*` or a route group such as `chat`")
    if expires is not None and expires <= created:
        raise ConfigError("the key would have expired before it is made")
    key = mint_key()
    try:
        record = KeyRecord(
            id=key.id,
            name=name,
            sha256=key_digest(key.text).hex(),
            scopes=tuple(sorted(checked)),
            created=created,
            expires=expires,
            requests_per_min=limit.requests_per_min,
            tokens_per_min=limit.tokens_per_min,
            service=service,
            group=group,
        )
    except ValidationError as error:
        raise ConfigError(
            "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors(include_input=False)
            )
        ) from None

    def append(store: KeyFile) -> KeyFile:
        if any(known.name == name for known in store.keys):
            raise ConfigError(f"a key named {name} exists; choose another name or revoke it")
        if len(store.keys) >= MAX_KEYS:
            raise ConfigError(f"the store is full ({MAX_KEYS} keys)")
        return KeyFile(keys=(*store.keys, record))

    _update(path, append, create=True)
    return key, record


def revoke_key(path: Path, name_or_id: str) -> KeyRecord:
    """Take a key out of the store. Running servers refuse it within a second.

    :raises ConfigError: no key, or more than one, answers to that. The message doesn't repeat
        it: people paste the whole key here.
    """
    revoked: list[KeyRecord] = []

    def remove(store: KeyFile) -> KeyFile:
        revoked.append(_only(store, name_or_id))
        return KeyFile(keys=tuple(key for key in store.keys if key.id != revoked[0].id))

    _update(path, remove, create=False)
    return revoked[0]


def declare_key(path: Path, name_or_id: str, *, service: bool) -> KeyRecord:
    """Say of a key whether it belongs to a service. Running servers know within a second.

    :raises ConfigError: as `revoke_key`.
    """
    declared: list[KeyRecord] = []

    def declare(store: KeyFile) -> KeyFile:
        found = _only(store, name_or_id)
        declared.append(found.model_copy(update={"service": service}))
        return KeyFile(keys=tuple(declared[0] if key is found else key for key in store.keys))

    _update(path, declare, create=False)
    return declared[0]


def _only(store: KeyFile, name_or_id: str) -> KeyRecord:
    found = [key for key in store.keys if name_or_id in (key.name, key.id)]
    if not found:
        raise ConfigError("no key has this name or id; `vauban keys list` shows all of them")
    if len(found) > 1:
        raise ConfigError("this is one key's name and another's id; give the other of the two")
    return found[0]


def _update(path: Path, change: Callable[[KeyFile], KeyFile], *, create: bool) -> None:
    # A link would otherwise be replaced by a file, and the file it names stay as it was.
    path = path.resolve()
    if not create and not path.exists():
        raise ConfigError(f"{path} can't be read: No such file or directory")
    try:
        with _locked(path.with_name(path.name + ".lock")):
            before = read_trusted_file(path) if path.exists() else None
            after = change(KeyFile() if before is None else _parse(path, before))
            _replace(path, after.model_dump_json(indent=2).encode() + b"\n", before)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from None


def _parse(path: Path, content: FileContent) -> KeyFile:
    try:
        return parse_key_file(content.data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # O_NOFOLLOW: a link planted under this name must not make us create a file elsewhere.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(f"{path} is held by another process") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes, before: FileContent | None) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                os.fchmod(descriptor, before.status.st_mode & _READ_BITS)
                owner = (before.status.st_uid, before.status.st_gid)
                made = os.fstat(descriptor)
                if owner != (made.st_uid, made.st_gid):
                    os.fchown(descriptor, *owner)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
