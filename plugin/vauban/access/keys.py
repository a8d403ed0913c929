"""API keys: their form, what is stored of them, and how one is checked.

A key reads `vbn_<id>_<secret><checksum>`: a prefix that secret scanners can match, a public id
that finds the stored hash, 32 random letters and digits (190 bits), and a CRC-32 that tells a
typing error from a key that was revoked.

The store keeps the SHA-256 of the whole key. Slow, salted hashes exist because people choose
passwords that can be guessed; nobody guesses 190 random bits, so a fast hash gives nothing away
and costs a request less than a microsecond.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from vauban.access.refusal import CredentialRefused, Refusal
from vauban.access.scopes import parse_scopes
from vauban.errors import ConfigError
from vauban.types import Principal, PrincipalKind, RateLimit

PREFIX: Final = "vbn_"
ID_CHARS: Final = 12
SECRET_CHARS: Final = 32
CHECKSUM_CHARS: Final = 6
KEY_CHARS: Final = len(PREFIX) + ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS
MAX_KEYS: Final = 10_000
GROUP: Final = r"[0-9A-Za-z][0-9A-Za-z._:@/-]{0,63}"
"""What a group may be called: it is logged and shown."""

_LOWER: Final = string.digits + string.ascii_lowercase
_LETTERS: Final = string.digits + string.ascii_letters
_KEY: Final = re.compile(
    rf"{PREFIX}([0-9a-z]{{{ID_CHARS}}})_[0-9A-Za-z]{{{SECRET_CHARS + CHECKSUM_CHARS}}}"
)
# Compared with where an id is unknown, so that the answer takes as long as for a known one.
_NOBODYS_DIGEST: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just minted. `text` exists here and at its owner, nowhere else."""

    id: str
    text: str = field(repr=False)


class KeyRecord(BaseModel):
    """One key in the store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=rf"^[0-9a-z]{{{ID_CHARS}}}$")
    name: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: tuple[str, ...]
    created: AwareDatetime
    expires: AwareDatetime | None
    requests_per_min: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tokens_per_min: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    service: bool = False
    group: Annotated[str, Field(pattern=rf"^{GROUP}$")] | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, object]:
        """So that a server of a version before these two fields still reads the other keys."""
        fields: dict[str, object] = serialize(self)
        for name in ("service", "group"):
            if not fields.get(name):
                fields.pop(name, None)
        return fields

    @field_validator("scopes")
    @classmethod
    def _known_scopes(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(sorted(parse_scopes(scopes)))
        except ConfigError as error:
            raise ValueError(str(error)) from None


class KeyFile(BaseModel):
    """The whole store as it stands in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = Field(default=(), max_length=MAX_KEYS)

    @field_validator("keys")
    @classmethod
    def _unique(cls, keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        for what, values in (("id", [k.id for k in keys]), ("name", [k.name for k in keys])):
            if len(set(values)) != len(values):
                raise ValueError(f"the same {what} appears twice")
        return keys


def mint_key() -> NewKey:
    """A new random key."""
    key_id = "".join(secrets.choice(_LOWER) for _ in range(ID_CHARS))
    secret = "".join(secrets.choice(_LETTERS) for _ in range(SECRET_CHARS))
    body = f"{PREFIX}{key_id}_{secret}"
    return NewKey(key_id, body + _checksum(body))


def key_id_of(text: str) -> str:
    """The public id inside a key.

    :raises CredentialRefused: not a key (malformed), or one with a typing error (mistyped).
    """
    match = _KEY.fullmatch(text)
    if match is None:
        raise CredentialRefused(Refusal.MALFORMED)
    if text[-CHECKSUM_CHARS:] != _checksum(text[:-CHECKSUM_CHARS]):
        raise CredentialRefused(Refusal.MISTYPED)
    return match.group(1)


def key_digest(text: str) -> bytes:
    """SHA-256 of the whole key, 32 bytes."""
    return hashlib.sha256(text.encode("ascii")).digest()


def parse_key_file(data: bytes) -> KeyFile:
    """:raises ConfigError: names the wrong fields, without their values."""
    try:
        return KeyFile.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False, include_url=False)
        details = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            for item in found[:5]
        )
        raise ConfigError(f"not a key store: {details}") from None


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal
    digest: bytes = field(repr=False)
    expires_at: float | None


class KeyTable:
    """The keys as the server checks them.

    :param default_limit: fills the ceilings that a key doesn't set itself.
    """

    def __init__(self, records: Iterable[KeyRecord], default_limit: RateLimit) -> None:
        self._entries = {record.id: _entry(record, default_limit) for record in records}

    def __len__(self) -> int:
        return len(self._entries)

    def verify(self, text: str, now: float) -> Principal:
        """
        :param now: seconds since the epoch.
        :raises CredentialRefused: with the reason for the log.
        """
        entry = self._entries.get(key_id_of(text))
        expected = _NOBODYS_DIGEST if entry is None else entry.digest
        matches = hmac.compare_digest(key_digest(text), expected)
        if entry is None:
            raise CredentialRefused(Refusal.UNKNOWN_KEY)
        if not matches:
            raise CredentialRefused(Refusal.WRONG_SECRET)
        if entry.expires_at is not None and now >= entry.expires_at:
            raise CredentialRefused(Refusal.EXPIRED)
        return entry.principal


def _entry(record: KeyRecord, default_limit: RateLimit) -> _Entry:
    limit = RateLimit(
        requests_per_min=record.requests_per_min or default_limit.requests_per_min,
        tokens_per_min=record.tokens_per_min or default_limit.tokens_per_min,
    )
    return _Entry(
        principal=Principal(
            f"key:{record.id}",
            PrincipalKind.KEY,
            frozenset(record.scopes),
            limit,
            service=record.service,
            group=record.group or "",
        ),
        digest=bytes.fromhex(record.sha256),
        expires_at=None if record.expires is None else record.expires.timestamp(),
    )


def _checksum(body: str) -> str:
    """CRC-32 in base 62, six characters."""
    rest = zlib.crc32(body.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_CHARS):
        rest, digit = divmod(rest, len(_LETTERS))
        digits.append(_LETTERS[digit])
    return "".join(digits)
