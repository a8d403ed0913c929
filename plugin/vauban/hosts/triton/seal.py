"""What travels between the steps is sealed, so that a step called alone gives nothing away.

Triton serves every model of a repository to whoever reaches its port, the inner steps of an
ensemble included. So what one step makes for the next is encrypted under a secret that only the
server's own processes have: a client that calls a step itself gets bytes that only the next step
opens, and ends where the whole ensemble would have ended.

AES-256-GCM, with the purpose as associated data: one kind of bundle can't be passed for another.
What has yet to be served is valid for a minute, and a `Once` takes each only one time.

Covers: forged, altered, reused and mixed-up bundles. Does not cover: somebody who can read the
environment of the server's processes; Triton's shared-memory API, which must not be reachable for
strangers (`vauban triton serve` closes it).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import struct
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vauban.errors import ConfigError, MalformedRequest
from vauban.mark import SECRET_VARIABLE, Sealer

VALID_S: Final = 60
MAX_SEEN: Final = 65_536
_NONCE_BYTES: Final = 12
_REFUSED: Final = ".refused"
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Bundle:
    """`ticket` names the request it belongs to. `fields`: JSON. `data`: bytes beside it."""

    ticket: str
    fields: Mapping[str, Any]
    data: bytes = b""


class Seal:
    """Seals and opens bundles.

    :param secret: at least 16 bytes, the same in every process of one server.
    :param clock: seconds since the epoch.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        if len(secret) < 16:
            raise ValueError("the secret must have at least 16 bytes")
        self._key = hashlib.sha256(b"vauban triton\0" + secret).digest()
        self._cipher = AESGCM(self._key)
        self._clock = clock

    def __repr__(self) -> str:
        return "Seal(***)"

    def tag(self, purpose: bytes) -> bytes:
        """A key for something else, which tells nothing of this one."""
        return hmac.digest(self._key, purpose, "sha256")

    def close(self, purpose: str, bundle: Bundle) -> bytes:
        head = json.dumps([bundle.ticket, self._clock(), dict(bundle.fields)]).encode()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        text = _LENGTH.pack(len(head)) + head + bundle.data
        return nonce + self._cipher.encrypt(nonce, text, purpose.encode())

    def open(self, purpose: str, sealed: bytes, valid_s: float = VALID_S) -> Bundle:
        """
        :param valid_s: how old it may be, in seconds.
        :raises MalformedRequest: not made by this server for this purpose, or too old.
        """
        try:
            text = self._cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode()
            )
        except (InvalidTag, ValueError):
            raise MalformedRequest(
                "this model is a step of guarded_llm and takes only what the step before it made"
            ) from None
        (length,) = _LENGTH.unpack_from(text)
        body = _LENGTH.size + length
        ticket, made, fields = json.loads(text[_LENGTH.size : body])
        if not -1 <= self._clock() - made < valid_s:
            raise MalformedRequest("the step before this one was too long ago")
        return Bundle(ticket, fields, text[body:])


class Tickets(Protocol):
    """Lets each ticket be taken once, as long as it is valid."""

    def take(self, ticket: str) -> None:
        """:raises MalformedRequest: the ticket was taken before."""


class Once:
    """For one process. Remembers tickets as long as they are valid, at most `MAX_SEEN` of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._clock = clock

    def take(self, ticket: str) -> None:
        """:raises MalformedRequest: the ticket was taken before, or too many are open."""
        now = self._clock()
        while self._seen and next(iter(self._seen.values())) < now - VALID_S - 1:
            self._seen.popitem(last=False)
        if ticket in self._seen or len(self._seen) >= MAX_SEEN:
            raise MalformedRequest("this step has been taken already")
        self._seen[ticket] = now


class SharedOnce:
    """The same for all processes of one server: a ticket is a file, which only one can make.

    :param secret: the server's; it names the directory, in the machine's one for temporary files.
    :param clock: seconds since the epoch, as the files' own times are.
    :raises ConfigError: the directory is not private.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        name = hashlib.sha256(b"vauban triton tickets\0" + secret).hexdigest()[:32]
        self._place = Path(tempfile.gettempdir()) / f"vauban-{name}"
        self._clock = clock
        self._swept_at = clock()
        self._make_place()

    def _make_place(self) -> None:
        self._place.mkdir(mode=0o700, exist_ok=True)
        status = self._place.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigError(f"{self._place} must belong to this user with mode 0700")

    def refuse(self, ticket: str) -> None:
        """Say that nobody waits for what is made for this ticket. It saves work and decides
        nothing, so where it can't be said nothing happens."""
        with suppress(OSError):
            self._sweep()
            self._make(f"{ticket}{_REFUSED}")

    def refused(self, ticket: str) -> bool:
        return (self._place / f"{ticket}{_REFUSED}").exists()

    def take(self, ticket: str) -> None:
        """:raises MalformedRequest: the ticket was taken before."""
        self._sweep()
        try:
            self._make(ticket)
        except FileExistsError:
            raise MalformedRequest("this step has been taken already") from None

    def _make(self, ticket: str) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        try:
            os.close(os.open(self._place / ticket, flags, 0o600))
        except FileNotFoundError:  # machines clear away what is idle among temporary files
            self._make_place()
            os.close(os.open(self._place / ticket, flags, 0o600))

    def _sweep(self) -> None:
        """Remove, now and then, what is no longer valid anyway."""
        now = self._clock()
        if now - self._swept_at < VALID_S:
            return
        self._swept_at = now
        for file in self._place.iterdir() if self._place.is_dir() else ():
            with suppress(FileNotFoundError):  # another process was here
                if file.stat().st_mtime < now - VALID_S - 1:
                    file.unlink()


def server_secret(environ: Mapping[str, str] = os.environ) -> bytes:
    """The secret that the processes of this server share.

    :raises ConfigError: there is none.
    """
    try:
        secret = bytes.fromhex(environ.get(SECRET_VARIABLE, ""))
        Sealer(secret)
    except ValueError:
        raise ConfigError(
            f"{SECRET_VARIABLE} must be in tritonserver's environment, at least 32 hexadecimal"
            " digits (`openssl rand -hex 32`); `vauban triton serve` makes one"
        ) from None
    return secret
