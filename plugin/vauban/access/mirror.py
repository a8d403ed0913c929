"""The copy of all records in memory, and its exchange with the store.

Each exchange fetches what others have changed, writes what was found here, and ends what time has
ended. Records join, so that nothing is lost when two servers find something at once, and a store
that lost its data gets back what every server knows.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from vauban.access.standing import (
    DETECTOR,
    PROPOSE,
    TIME,
    Record,
    Rules,
    Transition,
    decode,
    encode,
)
from vauban.errors import ConfigError, StateUnavailable
from vauban.policy_standing import StatePolicy
from vauban.state.store import MAX_PAGE, Store
from vauban.types import Level

logger = logging.getLogger(__name__)

SWEEP_EVERY_S: Final = 5.0
RELOAD_AFTER_S: Final = 1_800.0
"""Half of what resets are kept for: a server that was cut off for longer reads everything anew."""
_EVICTED_SHARE: Final = 100

Rule = Callable[[Record, float], Record]


class Mirror:
    """
    :param on_transition, on_levels, clock, monotonic: as `Ledger` has them.
    :param on_reset: called with the id of a user who was forgiven or erased.
    """

    def __init__(
        self,
        store: Store,
        policy: StatePolicy,
        rules: Rules,
        *,
        on_transition: Callable[[Transition], None],
        on_levels: Callable[[Mapping[Level, int]], None],
        on_reset: Callable[[str], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.lost = False
        self._store = store
        self._policy = policy
        self._rules = rules
        self._on_transition = on_transition
        self._on_levels = on_levels
        self._on_reset = on_reset
        self._clock = clock
        self._monotonic = monotonic
        self._records: dict[str, Record | None] = {}  # None: the store's can't be read
        self._dirty: set[str] = set()
        self._restoring: set[str] = set()  # of what is dirty, what the store has lost
        self._lock = threading.Lock()  # of the three above
        # One exchange with the store at a time: an answer from before a change must not be taken
        # for what came after it.
        self._io = threading.RLock()
        self._is_open = False
        self._epoch = ""
        self._revision = 0
        self._fresh_at = -float("inf")
        self._sweep_at = -float("inf")

    # -- memory ------------------------------------------------------------------------------------

    @property
    def is_fresh(self) -> bool:
        """The store has answered lately, or can't be lost."""
        if not self._store.shared and self._is_open:
            return True
        return self._monotonic() - self._fresh_at <= self._policy.stale_after_ms / 1000

    def get(self, key: str) -> Record | None:
        """The record of a user, an empty one if there is none, None if it can't be read."""
        return self._records.get(key, Record(key))

    def all(self) -> list[Record]:
        return [record for record in list(self._records.values()) if record is not None]

    def put(self, record: Record, base: Record) -> None:
        """Take what was found here; the next exchange writes it.

        :param base: what it was made from; the record may be another one by now.
        """
        key = record.principal
        with self._lock:
            if key not in self._records and len(self._records) >= 2 * self._policy.max_users:
                return
            current = self._records.get(key, base)
            if current is None:
                return
            if current is not base:
                record = self._rules.join(current, record, self._clock())
            self._records[key] = record
            self._dirty.add(key)

    # -- the store ---------------------------------------------------------------------------------

    def open(self) -> None:
        """:raises ConfigError: the store will never work. :raises StateUnavailable: not now."""
        with self._io:
            self._store.open()
            self._is_open = True

    def close(self) -> None:
        self._store.close()

    def refresh(self) -> bool:
        """One round: fetch, write, end what has ended. False when the store did not answer."""
        try:
            with self._io:
                if not self._is_open:
                    self.open()
                self._fetch()
                self._flush()
                self._sweep()
        except (StateUnavailable, ConfigError) as error:
            if not self.lost:
                logger.error("the store of users' standings does not answer: %s", error)
            self.lost = True
            return False
        if self.lost:
            logger.warning("the store of users' standings answers again")
        self.lost = False
        return True

    def _fetch(self) -> None:
        cut_off = self._monotonic() - self._fresh_at > RELOAD_AFTER_S
        since = 0 if cut_off else self._revision
        seen: set[str] = set()
        while True:
            changes = self._store.changes(since)
            if changes.epoch != self._epoch:
                if self._epoch:
                    logger.warning("the store came back without its data: it is written again")
                    with self._lock:
                        self._records = {k: r for k, r in self._records.items() if r is not None}
                        self._dirty.update(self._records)
                        self._restoring.update(self._records)
                self._epoch = changes.epoch
                if since:
                    since = 0
                    continue
            for key, value in changes.records:
                seen.add(key)
                self._take(key, value)
            since = changes.revision
            if len(changes.records) < MAX_PAGE:
                break
        if cut_off:
            with self._lock:
                for key in set(self._records) - seen - self._dirty:
                    del self._records[key]
        self._revision = since
        self._fresh_at = self._monotonic()

    def _take(self, key: str, value: bytes) -> None:
        """Put into memory what another server, or this one, has written."""
        stored = _readable(key, value)
        now = self._clock()
        with self._lock:
            known = self._records.get(key)
            mine = known if key in self._dirty else None
            self._records[key] = self._rules.join(mine, stored, now) if mine and stored else stored
        if stored and stored.reset_at > (known.reset_at if known else 0.0):
            self._on_reset(key)

    def _flush(self) -> None:
        with self._lock:
            dirty = list(self._dirty)
        for key in dirty:
            # Who is banned as before is no news.
            action = None if key in self._restoring else "observe"
            self.change(key, lambda record, _: record, action, DETECTOR)
            self._restoring.discard(key)

    def change(self, key: str, rule: Rule, action: str | None, by: str) -> None:
        """Apply a rule to what the store has and what was found here, in the store and in memory.

        :param action: as a transition has it; None = tell of none.
        :raises StateUnavailable: nothing was changed, or nobody knows.
        """
        stored, after, mine, now, unreadable = Record(key), Record(key), None, 0.0, False

        def change(value: bytes | None) -> bytes | None:
            nonlocal stored, after, now, unreadable
            now = self._clock()
            found = None if value is None else _readable(key, value)
            unreadable = value is not None and found is None and by in (DETECTOR, TIME)
            if unreadable:  # only an operator may put something else in its place
                return value
            stored = found or Record(key)
            after = rule(stored if mine is None else self._rules.join(stored, mine, now), now)
            return None if self._rules.is_void(after, now) else encode(after)

        with self._io:
            with self._lock:
                known = self._records.get(key)
                mine = known if key in self._dirty else None
            self._store.update(key, change)
            if after.reset_at > stored.reset_at:
                self._store.drop_counts([key])
            with self._lock:
                self._remember(key, known, None if unreadable else after, now)
        if after.reset_at > stored.reset_at:
            self._on_reset(key)
        if action is not None and not unreadable:
            self._tell(stored, after, action, by, now)

    def _remember(self, key: str, known: Record | None, after: Record | None, now: float) -> None:
        """Into memory, what has been written; `known`: what stood there before."""
        current = self._records.get(key)
        if after and current and current is not known:  # more was found meanwhile
            self._records[key] = self._rules.join(after, current, now)
            return
        self._dirty.discard(key)
        if after and self._rules.is_void(after, now):
            self._records.pop(key, None)
        else:
            self._records[key] = after

    def _tell(self, stored: Record, after: Record, action: str, by: str, now: float) -> None:
        settled = self._rules.settle(stored, now)
        standing = self._rules.standing(after, now)
        steps = [("expire", TIME, stored.level, settled.level)]
        steps.append((action, by, settled.level, standing.level))
        if _proposed(after) and not _proposed(stored):
            steps.append((PROPOSE, DETECTOR, standing.level, standing.level))
        for what, who, before, level in steps:
            news = what == PROPOSE or (what == action and who not in (DETECTOR, TIME))
            if before is not level or news:
                self._on_transition(
                    Transition(
                        after.principal, what, before, level, who, standing.until,
                        standing.evidence,
                    )
                )  # fmt: skip

    def _sweep(self) -> None:
        """Write down what time has ended, and count who is at which level."""
        if self._monotonic() < self._sweep_at:
            return
        self._sweep_at = self._monotonic() + SWEEP_EVERY_S
        now = self._clock()
        levels: Counter[Level] = Counter()
        for key, record in list(self._records.items()):
            if record is None:
                continue
            settled = self._rules.settle(record, now)
            if settled is not record or self._rules.is_void(record, now):
                self.change(key, self._rules.settle, "expire", TIME)
            levels[settled.level] += 1
        self._on_levels(levels)
        self._evict()

    def _evict(self) -> None:
        """Make room by forgetting the least suspicious; who is held or banned stays."""
        excess = len(self._records) - self._policy.max_users
        if excess <= 0:
            return
        spare = [record for record in self.all() if _is_spare(record)]
        room = excess + self._policy.max_users // _EVICTED_SHARE
        least = heapq.nsmallest(
            room, spare, key=lambda r: (r.level, r.found.since if r.found else 0)
        )
        if len(least) < excess:
            logger.error("the ledger is full: state.max_users are held or banned")

        for record in least:
            self._drop(record.principal)

    def _drop(self, key: str) -> None:
        """Forget a record, unless another server has made it one that must stay."""
        kept: bytes | None = None

        def drop(value: bytes | None) -> bytes | None:
            nonlocal kept
            stored = None if value is None else _readable(key, value)
            kept = None if stored and _is_spare(stored) else value
            return kept

        self._store.update(key, drop)
        with self._lock:
            self._records.pop(key, None)
            self._dirty.discard(key)
        if kept is not None:
            self._take(key, kept)


def _proposed(record: Record) -> str:
    return record.found.evidence.proposed if record.found and record.found.evidence else ""


def _is_spare(record: Record) -> bool:
    return record.decided is None and record.level < Level.HELD


def _readable(key: str, value: bytes) -> Record | None:
    try:
        return replace(decode(value), principal=key)
    except StateUnavailable:
        logger.error("the record of a user can't be read; was it written by a newer version?")
        return None
