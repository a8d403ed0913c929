"""The sealed mark: what the front tells the engine about a request, and nobody else can.

It travels as one string in `SamplingParams.extra_args` (the client-settable `vllm_xargs` of a
request, from which the front removes whatever a client put under the reserved key). It is sealed
with HMAC-SHA256 under a secret that is made at server start and inherited through the
environment, so an engine can tell a mark from a forgery, also when a request came past the front.

Covers: forged, altered and truncated marks. Does not cover: an attacker who can read the
environment of the server's processes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import struct
from dataclasses import dataclass
from enum import IntEnum

from vauban.detectors.windows import Windows
from vauban.types import Caller

RESERVED_KEY = "vauban"
SECRET_VARIABLE = "VAUBAN_SECRET"  # noqa: S105 - the name of the variable, not the secret
NONCE_BYTES = 16

_VERSION = 2
_HEADER = struct.Struct(f"<BB{NONCE_BYTES}sHH")  # version, order, nonce, lengths
_MAC_BYTES = 32


class Order(IntEnum):
    """What the engine must do with the request."""

    SCREEN = 1
    PASS = 2


@dataclass(frozen=True, slots=True)
class Mark:
    """`reply`: name of the front's socket in the runtime directory. `nonce` names the request.
    `caller`: who sent it, for the extraction detector; None: learn nothing from it."""

    order: Order
    nonce: bytes
    reply: str
    windows: Windows
    caller: Caller | None = None


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


class Sealer:
    """Seals and opens marks and other short messages between vauban's own processes.

    :param secret: at least 16 bytes, the same in every process of one server.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the secret must have at least 16 bytes")
        self._secret = secret

    def __repr__(self) -> str:
        return "Sealer(***)"

    def seal(self, purpose: bytes, data: bytes) -> bytes:
        return data + self.tag(purpose, data)

    def open(self, purpose: bytes, sealed: bytes) -> bytes | None:
        """The data, or None when the seal is not ours."""
        data, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
        return data if hmac.compare_digest(mac, self.tag(purpose, data)) else None

    def seal_mark(self, mark: Mark) -> str:
        reply = mark.reply.encode()
        caller = _caller_bytes(mark.caller)
        header = _HEADER.pack(_VERSION, mark.order, mark.nonce, len(reply), len(caller))
        sealed = self.seal(b"mark", header + reply + caller + mark.windows.to_bytes())
        return base64.b64encode(sealed).decode("ascii")

    def open_mark(self, text: object) -> Mark | None:
        """The mark, or None for anything that this server's front did not make."""
        if not isinstance(text, str):
            return None
        try:
            sealed = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return None
        data = self.open(b"mark", sealed)
        if data is None or len(data) < _HEADER.size:
            return None
        version, order, nonce, reply_bytes, caller_bytes = _HEADER.unpack_from(data)
        if version != _VERSION:
            return None
        end = _HEADER.size + reply_bytes
        reply, caller = data[_HEADER.size : end].decode(), data[end : end + caller_bytes]
        windows = Windows.from_bytes(data[end + caller_bytes :])
        return Mark(Order(order), nonce, reply, windows, _caller_of(caller))

    def tag(self, purpose: bytes, data: bytes) -> bytes:
        """The seal alone, for where the data travels apart. 32 bytes."""
        keyed = hmac.new(self._secret, purpose + b"\0", hashlib.sha256)
        keyed.update(data)
        return keyed.digest()


def _caller_bytes(caller: Caller | None) -> bytes:
    if caller is None:
        return b""
    row = [caller.id, caller.service, caller.tags, caller.forgiven_at, caller.prompts]
    return json.dumps(row).encode()


def _caller_of(data: bytes) -> Caller | None:
    if not data:
        return None
    name, service, tags, forgiven_at, prompts = json.loads(data)
    return Caller(name, service, tuple(tags), forgiven_at, prompts)
