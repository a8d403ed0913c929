"""Who is signed in. In memory only: a restart signs everybody out.

A session holds the operator's own credential, because each page is asked for with it; the browser
holds a random id of 256 bits that was drawn here after the credential was found to be good. An id
that was not drawn here is nobody's, so none can be planted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vauban.policy_console import ConsolePolicy

_ID_BYTES: Final = 32


@dataclass(slots=True, eq=False)
class Session:
    """One operator, signed in. Times in monotonic seconds. `csrf`: what each form must carry."""

    key: str = field(repr=False)
    principal: str
    scopes: frozenset[str]
    begun: float
    seen: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(_ID_BYTES), repr=False)
    notice: str = ""

    def is_own_form(self, csrf: str) -> bool:
        return hmac.compare_digest(self.csrf.encode(), csrf.encode())

    def take_notice(self) -> str:
        """What the last act came to, told once."""
        notice, self.notice = self.notice, ""
        return notice


class Sessions:
    """:param clock: monotonic seconds."""

    def __init__(self, policy: ConsolePolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._by_digest: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def begin(self, key: str, principal: str, scopes: frozenset[str]) -> str:
        """A new session's id, for the browser. Beyond the policy's number the one that is idle
        longest ends."""
        self._purge()
        while len(self._by_digest) >= self._policy.max_sessions:
            del self._by_digest[min(self._by_digest, key=lambda d: self._by_digest[d].seen)]
        drawn, now = secrets.token_urlsafe(_ID_BYTES), self._clock()
        self._by_digest[_digest(drawn)] = Session(key, principal, scopes, now, now)
        return drawn

    def find(self, session_id: str, *, acts: bool) -> Session | None:
        """:param acts: somebody does something; a page that asks for news by itself does not."""
        self._purge()
        session = self._by_digest.get(_digest(session_id))
        if session is not None and acts:
            session.seen = self._clock()
        return session

    def end(self, session_id: str) -> None:
        self._by_digest.pop(_digest(session_id), None)

    def _purge(self) -> None:
        now = self._clock()
        over = [
            digest
            for digest, session in self._by_digest.items()
            if now - session.begun >= self._policy.session_s
            or now - session.seen >= self._policy.idle_s
        ]
        for digest in over:
            del self._by_digest[digest]


def _digest(session_id: str) -> bytes:
    """Looked up by hash: how long a look-up takes tells nothing of another's id."""
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).digest()
