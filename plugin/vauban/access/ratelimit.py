"""Requests and tokens per minute, per principal, in bounded memory.

Windows are fixed: a minute from the principal's first request. Around the end of a window a
caller can therefore use two windows' worth at once; the rate over longer times holds. Tokens are
known only after the work is done, so they are charged late and may overdraw a window. The debt is
paid: the window then lasts as long as the tokens would have taken at the permitted rate.

The strategy is that of `limits`. Its own memory storage can't be used here: it grows with every
caller it has ever seen in a minute, and it walks all of them in a new thread every 10 ms. The
storage below holds a fixed number of windows. A running window is never thrown out to make room,
or a caller could clear its own by arriving under many names; callers that find no room share one
window until others end.

Covers one process. With several API server processes each counts for itself.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from vauban.errors import RateLimited
from vauban.types import Principal, PrincipalKind, RateLimit

logger = logging.getLogger(__name__)

MAX_WINDOWS: Final = 32_768
MAX_DEBT_S: Final = 3600.0
PURGE_EVERY_S: Final = 1.0


@dataclass(slots=True)
class _Window:
    count: int
    started_at: float
    ends_at: float


class BoundedStorage(Storage):
    """Counters of `limits` in at most `max_windows` windows of memory.

    :param clock: monotonic seconds.
    """

    STORAGE_SCHEME = None

    def __init__(self, *, max_windows: int, clock: Callable[[], float]) -> None:
        super().__init__()
        self._max_windows = max_windows
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._shared: _Window | None = None
        self._purged_at = -math.inf
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        with self._lock:
            now = self._clock()
            window = self._find(key, now)
            if window is None:
                window = self._open(key, now, expiry)
            window.count += amount
            return window.count

    def get(self, key: str) -> int:
        with self._lock:
            window = self._find(key, self._clock())
            return 0 if window is None else window.count

    def get_expiry(self, key: str) -> float:
        """When the window ends, on the storage's own clock; now where there is none."""
        with self._lock:
            now = self._clock()
            window = self._find(key, now)
            return now if window is None else window.ends_at

    def stretch(self, key: str, seconds: float) -> None:
        """Let a running window last `seconds` from its start, unless it already lasts longer."""
        with self._lock:
            window = self._find(key, self._clock())
            if window is not None:
                window.ends_at = max(window.ends_at, window.started_at + seconds)

    def clear(self, key: str) -> None:
        with self._lock:
            self._windows.pop(key, None)

    def reset(self) -> int | None:
        with self._lock:
            count = len(self._windows)
            self._windows.clear()
            self._shared = None
            return count

    def check(self) -> bool:
        return True

    def _find(self, key: str, now: float) -> _Window | None:
        window = self._windows.get(key)
        if window is None and not self._has_room(now):
            window = self._shared
        return window if window is not None and window.ends_at > now else None

    def _open(self, key: str, now: float, expiry: float) -> _Window:
        window = _Window(0, now, now + expiry)
        if key in self._windows or self._has_room(now):
            self._windows[key] = window
        else:
            self._shared = window
            logger.warning(
                "more than %d callers in one window: new ones share one limit", self._max_windows
            )
        return window

    def _has_room(self, now: float) -> bool:
        if len(self._windows) < self._max_windows:
            return True
        # Once a second at most: a full table must not make every request walk it.
        if now - self._purged_at >= PURGE_EVERY_S:
            self._purged_at = now
            self._windows = {k: w for k, w in self._windows.items() if w.ends_at > now}
        return len(self._windows) < self._max_windows


class _Meter:
    """One quantity (requests, or tokens) of all principals of one kind."""

    def __init__(self, clock: Callable[[], float], max_windows: int) -> None:
        self._clock = clock
        self._storage = BoundedStorage(max_windows=max_windows, clock=clock)
        self._limiter = FixedWindowRateLimiter(self._storage)

    def take(self, per_min: int, who: str) -> bool:
        """Count one, and say whether it was still within the limit."""
        return self._limiter.hit(RateLimitItemPerMinute(per_min), who)

    def has_room(self, per_min: int, who: str) -> bool:
        return self._limiter.test(RateLimitItemPerMinute(per_min), who)

    def charge(self, per_min: int, who: str, amount: int) -> None:
        """Count `amount`, also past the limit; what is past it lengthens the window."""
        item = RateLimitItemPerMinute(per_min)
        self._limiter.hit(item, who, cost=amount)
        key = item.key_for(who)
        used = self._storage.get(key)
        if used > per_min:
            seconds = min(item.get_expiry() * used / per_min, MAX_DEBT_S)
            self._storage.stretch(key, seconds)

    def refusal(self, per_min: int, who: str, what: str) -> RateLimited:
        item: RateLimitItem = RateLimitItemPerMinute(per_min)
        wait_s = self._storage.get_expiry(item.key_for(who)) - self._clock()
        return RateLimited(
            f"Rate limit reached: {per_min} {what} per minute.", retry_after_s=math.ceil(wait_s)
        )


def slowed(limit: RateLimit, factor: float, otherwise_per_min: int) -> RateLimit:
    """The ceilings of a slowed caller, never higher than before and never nothing at all.

    :param factor: what they are multiplied by, in (0, 1].
    :param otherwise_per_min: the ceiling of requests of a caller who has none.
    """
    requests, tokens = limit.requests_per_min, limit.tokens_per_min
    return RateLimit(
        otherwise_per_min if requests is None else max(1, int(requests * factor)),
        None if tokens is None else max(1, int(tokens * factor)),
    )


class RateLimiter:
    """The ceilings of all principals.

    Kinds of principals are kept apart: whoever can invent names of one kind (anonymous
    addresses, subjects of an open identity provider) can't crowd out those of another.

    :param clock: monotonic seconds.
    :param max_windows: windows kept per kind and quantity; about 0.3 kB each.
    """

    def __init__(self, *, clock: Callable[[], float], max_windows: int = MAX_WINDOWS) -> None:
        self._requests = {kind: _Meter(clock, max_windows) for kind in PrincipalKind}
        self._tokens = {kind: _Meter(clock, max_windows) for kind in PrincipalKind}

    def admit(self, principal: Principal) -> None:
        """Count one request.

        :raises RateLimited: no request is left in this minute, or the tokens are used up.
        """
        who, kind, limit = principal.id, principal.kind, principal.limit
        if limit.tokens_per_min is not None:
            tokens = self._tokens[kind]
            if not tokens.has_room(limit.tokens_per_min, who):
                raise tokens.refusal(limit.tokens_per_min, who, "tokens")
        if limit.requests_per_min is not None:
            requests = self._requests[kind]
            if not requests.take(limit.requests_per_min, who):
                raise requests.refusal(limit.requests_per_min, who, "requests")

    def charge(self, principal: Principal, tokens: int) -> None:
        """Count tokens that were used. Requests in flight meanwhile were already admitted."""
        per_min = principal.limit.tokens_per_min
        if per_min is not None and tokens > 0:
            self._tokens[principal.kind].charge(per_min, principal.id, tokens)
