"""What a server process remembers of late, to be shown to an operator: bounded, in memory only.

Audit events as they are written, and for each user the latest scores and places on the map. Texts
are kept only where policy says so (`console.excerpt_chars`), and nowhere else than here.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from vauban.policy_output import OutputPolicy
from vauban.text.sanitize import Sanitizer
from vauban.types import Evidence, Segment

_FIELDS: Final = 4


class RecentEvents:
    """The newest audit events of this process. Thread-safe.

    :param max_events: 0 keeps none.
    :param clock: seconds since the epoch.
    """

    def __init__(self, max_events: int, clock: Callable[[], float] = time.time) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=max_events)
        self._count = 0
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def max_events(self) -> int:
        return self._events.maxlen or 0

    def add(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._count += 1
            self._events.append({**event, "number": self._count, "time": self._clock()})

    def newest(self, limit: int, **wanted: str) -> list[dict[str, Any]]:
        """Newest first.

        :param wanted: fields and the values that they must have; an empty value asks nothing.
        """
        asked = {name: value for name, value in wanted.items() if value}
        with self._lock:
            events = list(self._events)
        found = (e for e in reversed(events) if all(e.get(n) == v for n, v in asked.items()))
        return list(islice(found, limit))

    def __len__(self) -> int:
        return len(self._events)

    @property
    def count(self) -> int:
        """Events since the start, also those that are not kept any more."""
        return self._count


@dataclass(frozen=True, slots=True)
class Point:
    """One query of a user: when (seconds since the epoch), the score after it, and where it lies
    on the map (`extraction/plane.py`)."""

    time: float
    score: float
    x: float
    y: float


class RecentQueries:
    """Of each user the latest queries, as points. Thread-safe.

    Memory: 32 bytes a query, at most `max_users` times `max_queries` times 5/4 of them. Beyond
    `max_users` the one who was silent longest is forgotten.
    """

    def __init__(
        self, max_users: int, max_queries: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._max_users, self._max_queries = max_users, max_queries
        self._clock = clock
        self._users: OrderedDict[str, array[float]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, user: str, evidence: Evidence) -> None:
        """Enter a query; one that is on no map is left out."""
        if evidence.at is None or not self._max_users:
            return
        with self._lock:
            kept = self._users.setdefault(user, array("d"))
            self._users.move_to_end(user)
            kept.extend((self._clock(), evidence.score, *evidence.at))
            if len(kept) > _FIELDS * (self._max_queries + self._max_queries // 4):
                del kept[: len(kept) - _FIELDS * self._max_queries]
            while len(self._users) > self._max_users:
                self._users.popitem(last=False)

    def forget(self, user: str) -> None:
        with self._lock:
            self._users.pop(user, None)

    def of(self, user: str) -> list[Point]:
        """Oldest first."""
        with self._lock:
            kept = self._users.get(user, array("d"))[-_FIELDS * self._max_queries :]
        return [Point(*kept[n : n + _FIELDS]) for n in range(0, len(kept), _FIELDS)]

    def latest(self, limit: int) -> list[tuple[str, int, Point]]:
        """Who asked last: the user, how many queries are kept, and the last one."""
        with self._lock:
            return [
                (user, min(len(kept) // _FIELDS, self._max_queries), Point(*kept[-_FIELDS:]))
                for user, kept in islice(reversed(self._users.items()), limit)
            ]


class Excerpts:
    """The end of what a caller wrote, without credentials in it.

    :param max_chars: 0: no text is kept.
    """

    def __init__(self, max_chars: int, output: OutputPolicy) -> None:
        self._max_chars = max_chars
        # Whatever may leave in answers, a credential is not kept to be shown.
        strict = {"secrets": "redact", "entropy": "redact", "control": "redact", "canary": "redact"}
        self._rules = Sanitizer(output.model_copy(update=strict))

    def of(self, segments: Sequence[Segment]) -> dict[str, Any] | None:
        """`text`, and how many characters there were in `of_chars`; None where none is kept."""
        untrusted = [segment.text for segment in segments if not segment.origin.trusted]
        if not self._max_chars or not untrusted:
            return None
        # Redacted before it is cut: half a credential is none to the rules.
        near = untrusted[-1]
        if len(near) > _READ_CHARS:
            near = near[-_READ_CHARS:].partition(" ")[2]
        text, _ = self._rules.whole(near)
        return {"text": text[-self._max_chars :], "of_chars": sum(map(len, untrusted))}


_READ_CHARS: Final = 16_384
