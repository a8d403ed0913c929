"""Who is calling: API keys, JWTs, or (on loopback only) the client's address.

`Identity` is all a host needs. It takes header values as text and knows no HTTP. Whatever is
wrong with a credential, the client reads the same sentence and the log has the reason; neither
repeats any part of the credential.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from vauban.access.jwt import JwtVerifier
from vauban.access.keys import PREFIX, KeyTable, parse_key_file
from vauban.access.ratelimit import RateLimiter
from vauban.access.refusal import CredentialRefused, Refusal
from vauban.access.scopes import parse_scopes
from vauban.access.watch import WatchedFile
from vauban.errors import ConfigError, PolicyError, Unauthenticated
from vauban.policy import IdentityPolicy
from vauban.types import Principal, PrincipalKind, RateLimit

logger = logging.getLogger(__name__)

UNAUTHENTICATED: Final = "A valid API key or token is required."
MAX_HEADER_CHARS: Final = 8192 + 16
IPV6_SITE_BITS: Final = 64
PRINCIPAL_ID: Final = re.compile(
    r"key:[0-9a-z]{12}|jwt:[0-9a-f]{32}|anon:(?:local|[0-9a-f.:]{2,45}(?:/64)?)"
    r"|gateway:[!-~]{1,128}"
)
"""As they are made here, in `jwt.py` and, of a name that a gateway gives, for Triton."""
_PORT: Final = re.compile(r"^\[?([0-9a-fA-F:]+(?=\])|[0-9.]+)\]?(?::\d+)?$")
"""An address with a port, as some proxies write it: 192.0.2.1:4711, [2001:db8::1]:4711."""


class Identity:
    """Authentication and rate limits of one server process.

    :param clock: seconds since the epoch; expiry is judged by it.
    :param monotonic: seconds; windows and file checks are timed by it, so that a clock that is
        set back neither locks callers out nor hides a revocation.
    :raises ConfigError: a file or a setting can't be used.
    """

    def __init__(
        self,
        policy: IdentityPolicy,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._limit = RateLimit(policy.requests_per_min, policy.tokens_per_min)
        self._limiter = RateLimiter(clock=monotonic)
        self._keys: WatchedFile[KeyTable] | None = None
        self._jwt: JwtVerifier | None = None
        try:
            self._anonymous_scopes = parse_scopes(policy.anonymous_scopes)
        except ConfigError as error:
            raise PolicyError(f"identity.anonymous_scopes: {error}") from None
        if policy.keys_file is not None:
            self._keys = WatchedFile(
                policy.keys_file, self._key_table, clock=monotonic, private=True
            )
        if policy.jwks_file is not None:
            self._jwt = JwtVerifier(policy, monotonic=monotonic)

    @property
    def anonymous_allowed(self) -> bool:
        """Whether callers without a credential are served: neither keys nor a JWKS are set."""
        return self._keys is None and self._jwt is None

    def authenticate(
        self,
        *,
        authorization: str | None,
        api_key: str | None,
        client_host: str | None,
    ) -> Principal:
        """The caller behind a request.

        :param authorization: the `Authorization` header; `Bearer` and a key or a JWT.
        :param api_key: the `x-api-key` header, with a key or a JWT.
        :param client_host: address of the peer; None for a unix socket.
        :raises Unauthenticated: always with the same message.
        """
        if self.anonymous_allowed:
            # Clients always send some key, so one that nothing can check is no reason to refuse.
            return Principal(
                f"anon:{_caller_group(client_host)}",
                PrincipalKind.ANONYMOUS,
                self._anonymous_scopes,
                self._limit,
            )
        try:
            return self._verify(_credential(authorization, api_key))
        except CredentialRefused as refused:
            reason = refused.reason
        logger.info("credential refused: %s", reason.value)
        raise Unauthenticated(UNAUTHENTICATED)

    def admit(self, principal: Principal) -> None:
        """Count one request of the principal.

        :raises RateLimited: its requests of this minute, or its tokens, are used up.
        """
        self._limiter.admit(principal)

    def charge(self, principal: Principal, tokens: int) -> None:
        """Count the tokens a request used; the next `admit` refuses once they are used up."""
        self._limiter.charge(principal, tokens)

    def _verify(self, credential: str) -> Principal:
        if credential.startswith(PREFIX):
            if self._keys is None:
                raise CredentialRefused(Refusal.NOT_ACCEPTED)
            table = self._keys.current()
            if table is None:
                raise CredentialRefused(Refusal.STORE_UNUSABLE)
            return table.verify(credential, self._clock())
        if self._jwt is None:
            raise CredentialRefused(Refusal.NOT_ACCEPTED)
        return self._jwt.verify(credential, self._clock())

    def _key_table(self, data: bytes) -> KeyTable:
        table = KeyTable(parse_key_file(data).keys, self._limit)
        if not len(table):
            logger.warning("the key store is empty: every key will be refused")
        return table


def is_loopback(host: str | None) -> bool:
    """Whether a server bound to `host` can be reached from this machine only.

    True for 127.0.0.0/8, ::1, localhost and unix sockets (`unix:...` or an absolute path). None
    and the empty string bind every interface.
    """
    if not host:
        return False
    if host.startswith(("unix:", "/")):
        return True
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def require_safe_bind(identity: Identity, host: str | None) -> None:
    """Refuse to serve strangers: without keys the server may listen on loopback only.

    :raises ConfigError: with what to do about it.
    """
    if identity.anonymous_allowed and not is_loopback(host):
        raise ConfigError(
            f"no key is configured, so the server may not listen on {host or 'all interfaces'}."
            " Make a key with `vauban keys add NAME` and set identity.keys_file to its store, or"
            " set identity.jwks_file, or listen on 127.0.0.1 (--host 127.0.0.1)."
        )


def _credential(authorization: str | None, api_key: str | None) -> str:
    bearer = None
    if authorization:
        if len(authorization) > MAX_HEADER_CHARS:
            raise CredentialRefused(Refusal.MALFORMED)
        scheme, _, bearer = authorization.partition(" ")
        bearer = bearer.strip(" ")
        if scheme.lower() != "bearer" or not bearer:
            raise CredentialRefused(Refusal.MALFORMED)
    # Two different credentials: what sits before or behind us may believe the other one.
    if bearer and api_key and bearer != api_key:
        raise CredentialRefused(Refusal.AMBIGUOUS)
    credential = bearer or api_key
    if not credential:
        raise CredentialRefused(Refusal.MISSING)
    if len(credential) > MAX_HEADER_CHARS:
        raise CredentialRefused(Refusal.MALFORMED)
    return credential


def _caller_group(host: str | None) -> str:
    """The address limits apply to; an IPv6 site counts as one, since it owns 2^64 addresses, and so
    does this machine, where a caller may take any address of 127.0.0.0/8."""
    address = _address(host or "")
    if address is None or address.is_loopback:
        return "local"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address), IPV6_SITE_BITS), strict=False))


def client_host(peer: str | None, forwarded: Sequence[str], proxies: Sequence[str]) -> str | None:
    """The address of whoever asks; None where it is only what the caller says.

    :param peer: as the HTTP server has it. Unless FORWARDED_ALLOW_IPS is empty, as `vauban serve`
        has it, uvicorn puts an address out of the header there if a request comes over loopback.
    :param forwarded: the values of X-Forwarded-For; each proxy has added whom it was asked by.
    :param proxies: addresses and networks whose word counts (`identity.trusted_proxies`).
    """
    if not forwarded:
        return peer
    if not proxies:
        return None  # anybody on this machine could have said so
    trusted = [ipaddress.ip_network(proxy) for proxy in proxies]

    def is_trusted(host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in trusted)

    hops = [_PORT.sub(r"\1", hop.strip()) for value in forwarded for hop in value.split(",")]
    for host in (peer or "127.0.0.1", *reversed(hops)):
        if not is_trusted(host):
            return host
    return peer


def address_block(host: str | None) -> str:
    """A name for the block of public addresses that a caller sits in: /24, or a site's /48 of
    IPv6. Empty for any other address, which says nothing of who shares it."""
    address = _address(host or "")
    if address is None or not address.is_global:
        return ""
    bits = 24 if isinstance(address, ipaddress.IPv4Address) else 48
    return f"net:{ipaddress.ip_network((int(address), bits), strict=False)}"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in `host`, out of brackets, zone and IPv4-in-IPv6 form; None for a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
