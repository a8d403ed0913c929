"""Why a credential was refused: for the operator's log, never for the client.

Clients get one sentence for all of these. Told apart, "unknown" and "wrong secret" would say
which key ids exist.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Reasons, safe to log and bounded in number."""

    MISSING = "missing"
    AMBIGUOUS = "ambiguous"
    MALFORMED = "malformed"
    MISTYPED = "mistyped"
    UNKNOWN_KEY = "unknown_key"
    WRONG_SECRET = "wrong_secret"  # noqa: S105 - a reason, not a secret
    EXPIRED = "expired"
    NOT_ACCEPTED = "not_accepted"
    STORE_UNUSABLE = "store_unusable"
    BAD_HEADER = "bad_header"
    BAD_SIGNATURE = "bad_signature"
    BAD_CLAIMS = "bad_claims"


class CredentialRefused(Exception):
    """Inside `access/` only; `Identity` turns it into `Unauthenticated`."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason
