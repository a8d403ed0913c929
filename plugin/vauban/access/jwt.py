"""JWTs of an identity provider, verified against a JWKS file (RFC 7519, RFC 8725).

Covers: `alg: none`, symmetric algorithms with the public key as secret, keys and key addresses
inside the token (`jwk`, `jku`, `x5u`, `x5c`), `crit` extensions, unknown and duplicate `kid`,
tokens for another audience or of another type, missing `exp`, oversized and malformed tokens.
Does not cover: revocation of a token before its `exp`, and fetching the JWKS (a file is read; put
it there with what manages your secrets).

The JWKS is public. One with private or symmetric keys in it is refused: whoever can read it
could sign tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, Final

from joserfc import jws
from joserfc.errors import BadSignatureError, ExpiredTokenError, JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from vauban.access.keys import GROUP
from vauban.access.refusal import CredentialRefused, Refusal
from vauban.access.scopes import known_scopes
from vauban.access.watch import WatchedFile
from vauban.errors import ConfigError, PolicyError
from vauban.policy import IdentityPolicy
from vauban.types import Principal, PrincipalKind, RateLimit

MAX_TOKEN_CHARS: Final = 8192
MAX_HEADER_CHARS: Final = 2048
MAX_JWKS_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
LEEWAY_S: Final = 30

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
KEY_TYPES: Final = ("RSA", "EC", "OKP")
# RFC 8725 section 3.11: a token made for another purpose (logout, DPoP proof) is no access token.
TOKEN_TYPES: Final = (None, "jwt", "at+jwt", "application/at+jwt")
REFUSED_HEADERS: Final = frozenset({"crit", "b64", "jwk", "jku", "x5u", "x5c"})
# What joserfc raises for tokens that are wrong in a way it looked for (the first), and in one it
# didn't: wrong types inside the header, broken encodings, JSON nested beyond the parser's depth.
_PARSE_ERRORS: Final = (JoseError, ValueError, TypeError, KeyError, RecursionError)


class JwtVerifier:
    """Checks tokens and gives their principals.

    :param monotonic: seconds, for following changes of the JWKS file.
    :raises ConfigError: the JWKS is not usable, or issuer or audience is not set. Without them
        every token the provider signs, for whichever application, would open this server.
    """

    def __init__(self, policy: IdentityPolicy, *, monotonic: Callable[[], float]) -> None:
        if policy.jwks_file is None:
            raise PolicyError("identity.jwks_file is not set")
        for name in ("jwt_issuer", "jwt_audience"):
            if not getattr(policy, name):
                raise PolicyError(
                    f"identity.{name} must be set together with identity.jwks_file: without it"
                    " tokens made for other applications would be accepted"
                )
        self._policy = policy
        self._limit = RateLimit(policy.requests_per_min, policy.tokens_per_min)
        self._registry = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        self._registry.max_header_length = MAX_HEADER_CHARS
        self._jwks = WatchedFile(policy.jwks_file, parse_jwks, clock=monotonic, private=False)

    def verify(self, token: str, now: float) -> Principal:
        """
        :param now: seconds since the epoch.
        :raises CredentialRefused: with the reason for the log.
        """
        keys = self._jwks.current()
        if keys is None:
            raise CredentialRefused(Refusal.STORE_UNUSABLE)
        claims = self._claims(self._signed_payload(token, keys), now)
        who = json.dumps([claims["iss"], claims["sub"]]).encode("ascii")
        return Principal(
            f"jwt:{hashlib.sha256(who).hexdigest()[:32]}",
            PrincipalKind.JWT,
            known_scopes(_scope_values(claims.get(self._policy.jwt_scope_claim))),
            self._limit,
            service=self._claim(claims, self._policy.jwt_service_claim) is True,
            group=_group(self._claim(claims, self._policy.jwt_group_claim)),
        )

    @staticmethod
    def _claim(claims: dict[str, Any], name: str | None) -> object:
        return claims.get(name) if name else None

    def _signed_payload(self, token: str, keys: KeySet) -> bytes:
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise CredentialRefused(Refusal.MALFORMED)
        try:
            signed = jws.extract_compact(token.encode("ascii"), registry=self._registry)
            header: Any = signed.headers()
        except _PARSE_ERRORS:
            raise CredentialRefused(Refusal.MALFORMED) from None
        if not _is_plain_header(header):
            raise CredentialRefused(Refusal.BAD_HEADER)
        try:
            if not jws.validate_compact(signed, keys, registry=self._registry):
                raise BadSignatureError
        except _PARSE_ERRORS:
            raise CredentialRefused(Refusal.BAD_SIGNATURE) from None
        return signed.payload

    def _claims(self, payload: bytes, now: float) -> dict[str, Any]:
        registry = JWTClaimsRegistry(
            now=int(now),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._policy.jwt_issuer or ""},
            aud={"essential": True, "value": self._policy.jwt_audience or ""},
            sub={"essential": True},
            exp={"essential": True},
        )
        try:
            claims = json.loads(payload)
            if not isinstance(claims, dict):
                raise CredentialRefused(Refusal.BAD_CLAIMS)
            registry.validate(claims)
            # The leeway is for clocks that are ahead of ours, not for tokens that have ended.
            if claims["exp"] <= now:
                raise CredentialRefused(Refusal.EXPIRED)
        except ExpiredTokenError:
            raise CredentialRefused(Refusal.EXPIRED) from None
        except _PARSE_ERRORS:
            raise CredentialRefused(Refusal.BAD_CLAIMS) from None
        return claims


def parse_jwks(data: bytes) -> KeySet:
    """The usable public keys of a JWKS (RFC 7517).

    Keys of unknown type or for encryption are left out, as section 5 asks.

    :raises ConfigError: not a JWKS, no usable key, two keys of one `kid`, a private or symmetric
        key, or an RSA key below 2048 bits.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError("the JWKS is not JSON") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or not all(isinstance(m, dict) for m in members):
        raise ConfigError('the JWKS must be an object with a list "keys"')
    if len(members) > MAX_JWKS_KEYS:
        raise ConfigError(f"the JWKS has more than {MAX_JWKS_KEYS} keys")
    keys = KeySet([key for i, m in enumerate(members) if (key := _public_key(i, m)) is not None])
    if not keys.keys:
        raise ConfigError("the JWKS has no key that can verify a signature")
    if len({key.kid for key in keys.keys}) != len(keys.keys):
        raise ConfigError("the JWKS has two keys with the same kid")
    return keys


def _public_key(index: int, member: dict[str, Any]) -> Key | None:
    if member.get("kty") == "oct" or "d" in member or "k" in member:
        raise ConfigError(f"keys[{index}] of the JWKS is secret; publish the public half only")
    if member.get("kty") not in KEY_TYPES or member.get("use", "sig") != "sig":
        return None
    try:
        key = JWKRegistry.import_key(member)
    except _PARSE_ERRORS:
        raise ConfigError(f"keys[{index}] of the JWKS can't be read") from None
    if isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS:
        raise ConfigError(f"keys[{index}] of the JWKS is an RSA key below {MIN_RSA_BITS} bits")
    return key


def _is_plain_header(header: Any) -> bool:
    """Whether the header names an allowed algorithm and nothing that brings its own key."""
    if not isinstance(header, dict) or not REFUSED_HEADERS.isdisjoint(header):
        return False
    kind = header.get("typ")
    return (
        header.get("alg") in ALGORITHMS
        and isinstance(header.get("kid", ""), str)
        and (kind.lower() if isinstance(kind, str) else kind) in TOKEN_TYPES
    )


def _group(claim: object) -> str:
    """A group that can be logged. Another text is named by its hash: it still tells who belongs
    together."""
    if not isinstance(claim, str) or not claim:
        return ""
    if re.fullmatch(GROUP, claim):
        return claim
    return f"sha256:{hashlib.sha256(claim.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _scope_values(claim: object) -> list[str]:
    """RFC 8693 section 4.2 writes scopes as one string, some providers as a list."""
    if isinstance(claim, str):
        return claim.split()
    if isinstance(claim, list):
        return [value for value in claim if isinstance(value, str)]
    return []
