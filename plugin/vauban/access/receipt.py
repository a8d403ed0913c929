"""Receipts: what a tool's backend can check before it does what a released call asks for.

A client that runs its own tools may run them whatever the server withholds. A backend that demands
a receipt closes that gap: a JWT (RFC 7519) signed with Ed25519, that names the tool, the caller,
the approver, a hash of the canonical arguments, and ends after `tools.receipt_s`.

    from vauban.access.receipt import verify_receipt

    receipt = verify_receipt(text, key, tool="send_email", arguments=arguments)
    if not first_time(receipt.id, until=receipt.expires):   # the backend's own table
        raise PermissionError

`key` is the public JWK that `vauban approvals key` prints. Without vauban: verify the JWS (alg
Ed25519, typ vauban-receipt+jwt), then `iss`, `exp`, `tool`, and that `arguments_sha256` is the
SHA-256 of the arguments as JSON in ASCII, names in order of their code points, no blanks.

Covers: forged and altered receipts, another tool, other arguments, receipts that have ended. Does
not cover: a receipt that is shown twice; remember its id until it ends.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from vauban.access.approval import Approval
from vauban.access.arguments import NotArguments, canonical, parse
from vauban.errors import VaubanError

ALGORITHM: Final = "Ed25519"  # RFC 9864
TYPE: Final = "vauban-receipt+jwt"
ISSUER: Final = "vauban"
MAX_RECEIPT_CHARS: Final = 4_096
LEEWAY_S: Final = 30


class ReceiptRefused(VaubanError):
    """Not a receipt for this call; says why."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was approved. `id`: of this one call, to be used once. `expires`: seconds since the
    epoch."""

    id: str
    tool: str
    caller: str
    approved_by: str
    expires: float


class Receipts:
    """Signs for the calls of released approvals.

    :param secret: the key pair follows from it, so it is the same after a restart.
    """

    def __init__(self, secret: bytes, valid_s: int) -> None:
        seed = hmac.digest(secret, b"vauban receipt", "sha256")
        self._key = OKPKey.import_key(Ed25519PrivateKey.from_private_bytes(seed))
        self._kid = self._key.thumbprint()
        self._valid_s = valid_s

    def public_key(self) -> dict[str, Any]:
        """The JWK that receipts are verified with."""
        shown = self._key.as_dict(private=False)
        return {**shown, "kid": self._kid, "alg": ALGORITHM, "use": "sig"}

    def sign(self, approval: Approval, now: float) -> dict[str, str]:
        """A receipt for each call, by the id of the call."""
        header = {"alg": ALGORITHM, "typ": TYPE, "kid": self._kid}
        signed = {}
        for number, call in enumerate(approval.calls):
            claims = {
                "iss": ISSUER,
                "jti": f"{approval.id}.{number}",
                "sub": approval.tenant,
                "approved_by": approval.by,
                "tool": call.tool,
                "arguments_sha256": _sha256(call.arguments),
                "iat": int(now),
                "exp": int(now) + self._valid_s,
            }
            signed[call.id] = jws.serialize_compact(
                header, json.dumps(claims).encode(), self._key, [ALGORITHM]
            )
        return signed


def verify_receipt(
    receipt: str, key: Mapping[str, Any] | str, *, tool: str,
    arguments: Mapping[str, Any] | str, now: float | None = None,
) -> Receipt:  # fmt: skip
    """Check a receipt against the call that is about to run.

    :param key: the public JWK, or its JSON.
    :param arguments: what the tool was called with, parsed or as JSON.
    :param now: seconds since the epoch; default: this machine's clock.
    :raises ReceiptRefused: with what does not fit.
    """
    claims = _claims(receipt, key)
    now = time.time() if now is None else now
    if claims.get("iss") != ISSUER or not isinstance(claims.get("jti"), str):
        raise ReceiptRefused("it is no receipt")
    expires, made = claims.get("exp"), claims.get("iat")
    if type(expires) is not int or type(made) is not int or made > now + LEEWAY_S:
        raise ReceiptRefused("its times are wrong")
    if expires <= now:
        raise ReceiptRefused("it has ended")
    if claims.get("tool") != tool:
        raise ReceiptRefused("it is for another tool")
    try:
        read = parse(arguments) if isinstance(arguments, str) else parse(json.dumps(arguments))
    except (NotArguments, TypeError, ValueError):
        raise ReceiptRefused("the arguments are not one plain JSON object") from None
    if claims.get("arguments_sha256") != _sha256(canonical(read)):
        raise ReceiptRefused("it is for other arguments")
    return Receipt(
        claims["jti"], tool, str(claims.get("sub")), str(claims.get("approved_by")), expires
    )


def _claims(receipt: str, key: Mapping[str, Any] | str) -> dict[str, Any]:
    if len(receipt) > MAX_RECEIPT_CHARS or not receipt.isascii():
        raise ReceiptRefused("it is no receipt")
    try:
        jwk = json.loads(key) if isinstance(key, str) else dict(key)
        public = OKPKey.import_key({n: jwk[n] for n in ("kty", "crv", "x")})
        found = jws.deserialize_compact(receipt, public, algorithms=[ALGORITHM])
        claims = json.loads(found.payload)
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):
        raise ReceiptRefused("its signature is not this key's") from None
    if found.headers().get("typ") != TYPE or not isinstance(claims, dict):
        raise ReceiptRefused("it is no receipt")
    return claims


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
