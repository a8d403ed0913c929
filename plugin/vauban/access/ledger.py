"""The ledger of how every user is treated: in memory for each request, in the store for good.

A server keeps a copy of all records in memory, so `standing` and `observe` wait for nothing. One
thread carries changes both ways: what the detector found here goes to the store, what others have
changed comes back, at least every `state.refresh_ms`. When the store has been silent for
`state.stale_after_ms`, `standing` raises; only `guard.py` says what that means. What is known is
never thrown away for it: a lost store forgets no ban, and neither does a store that comes back
empty, because every server writes back what it knows.

Times that end are compared with this machine's clock; keep the clocks of several servers together.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from vauban.access.standing import (
    DETECTOR,
    TIME,
    Record,
    Rules,
    Standing,
    Transition,
    decode,
    encode,
)
from vauban.errors import ConfigError, StateUnavailable
from vauban.policy_standing import ResponsePolicy, StatePolicy
from vauban.state.store import MAX_PAGE, Store
from vauban.types import Evidence, Level, Principal

logger = logging.getLogger(__name__)

SWEEP_EVERY_S: Final = 5.0
RELOAD_AFTER_S: Final = 1_800.0
"""Half of what resets are kept for: a server that was cut off for longer reads everything anew."""
_EVICTED_SHARE: Final = 100


Rule = Callable[[Record, float], Record]


class Ledger:
    """
    :param on_transition: called once per transition, by the server that made it, from any thread.
    :param on_levels: called now and then with how many users are at each level.
    :param clock: seconds since the epoch. :param monotonic: seconds.
    """

    def __init__(
        self,
        store: Store,
        state: StatePolicy,
        response: ResponsePolicy,
        *,
        on_transition: Callable[[Transition], None] = lambda _: None,
        on_levels: Callable[[Mapping[Level, int]], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = Rules(response)
        self._store = store
        self._policy = state
        self._on_transition = on_transition
        self._on_levels = on_levels
        self._clock = clock
        self._monotonic = monotonic
        self._records: dict[str, Record | None] = {}  # None: the store's can't be read
        self._dirty: set[str] = set()
        self._lock = threading.Lock()  # of the two above, and of what follows
        self._resets: list[Callable[[str], None]] = []
        self._is_open = False
        self._epoch = ""
        self._revision = 0
        self._fresh_at = -float("inf")
        self._sweep_at = -float("inf")
        self._lost = False
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    # -- the life of a server --------------------------------------------------------------------

    def open(self) -> None:
        """Read everything, then keep up with it in the background. A store that does not answer is
        a lost store, and not the end of the start.

        :raises ConfigError: the store will never work.
        """
        try:
            self._store.open()
            self._is_open = True
        except StateUnavailable as error:
            logger.error("the store does not answer yet: %s", error)
        self.refresh()
        self._thread = threading.Thread(target=self._run, name="vauban-ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2 * self._policy.timeout_ms / 1000 + 1)
            self._thread = None
            self.refresh()  # what the detector found last
        self._store.close()

    def on_reset(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with the id of every user who was forgiven or erased, here or by
        another server: whatever was gathered about them must go. From any thread."""
        self._resets.append(callback)

    def _run(self) -> None:
        pause_s = self._policy.refresh_ms / 1000
        while not self._stopped.is_set():
            # A lost store is not asked again for every query that would be written.
            (self._stopped if self._lost else self._wake).wait(pause_s)
            self._wake.clear()
            if not self._stopped.is_set():
                self.refresh()

    # -- every request: no waiting ---------------------------------------------------------------

    @property
    def is_fresh(self) -> bool:
        if not self._store.shared and self._is_open:
            return True
        return self._monotonic() - self._fresh_at <= self._policy.stale_after_ms / 1000

    def standing(self, principal_id: str) -> Standing:
        """:raises StateUnavailable: the store is lost, or this user's record can't be read."""
        if not self.is_fresh:
            raise StateUnavailable("the store is lost")
        if self._records.get(principal_id, _UNKNOWN) is None:
            raise StateUnavailable("the record can't be read")
        return self.remembered(principal_id)

    def remembered(self, principal_id: str) -> Standing:
        """What was last known, however long ago."""
        record = self._records.get(principal_id)
        if record is None:
            return Standing(principal_id)
        return self.rules.standing(record, self._clock())

    def decided(self, principal_id: str) -> Standing:
        """What operators alone have decided, as last known."""
        record = self._records.get(principal_id) or Record(principal_id)
        return self.rules.standing(replace(record, found=None), self._clock())

    def observe(
        self, principal: Principal, evidence: Evidence, *, began_at: float | None = None
    ) -> Standing:
        """Raise or prolong the level of a user, as far as policy lets evidence do that.

        :param began_at: when the evidence began to be gathered, seconds since the epoch. What
            began before the user was last forgiven does not count. None = it all counts.
        """
        known = self._records.get(principal.id)
        record = known or Record(principal.id)
        after = self.rules.observe(
            record, evidence, service=principal.service, began_at=began_at, now=self._clock()
        )
        if after is not record:
            with self._lock:
                if known is not None or len(self._records) < 2 * self._policy.max_users:
                    self._records[principal.id] = after
                    self._dirty.add(principal.id)
            self._wake.set()
        return self.remembered(principal.id)

    # -- operators: wait for the store -----------------------------------------------------------

    def ban(
        self, principal_id: str, *, by: str, reason: str, seconds: float | None = None
    ) -> Standing:
        """:param seconds: None = as long as policy has it. :raises StateUnavailable:"""
        return self.set_level(
            principal_id, Level.BANNED, by=by, reason=reason, seconds=seconds, action="ban"
        )

    def unban(self, principal_id: str, *, by: str, reason: str) -> Standing:
        """Forgive: no level, and what was found before does not count again."""
        return self.set_level(principal_id, Level.CLEAR, by=by, reason=reason, action="unban")

    def set_level(
        self, principal_id: str, level: Level, *, by: str, reason: str,
        seconds: float | None = None, action: str = "level",
    ) -> Standing:  # fmt: skip
        """:raises StateUnavailable: nothing was changed, or nobody knows."""

        def rule(record: Record, now: float) -> Record:
            return self.rules.decide(record, level, seconds=seconds, by=by, reason=reason, now=now)

        self._change(principal_id, rule, action, by)
        return self.remembered(principal_id)

    def forget(self, principal_id: str, *, by: str) -> Standing:
        """Erase what is kept of a user; one who is held or banned stays so, as a bare id."""
        self._change(principal_id, self.rules.forget, "forget", by)
        self._store.drop_counts([principal_id])
        return self.remembered(principal_id)

    # -- reading ---------------------------------------------------------------------------------

    def users(
        self, level: Level | None = None, *, after: str = "", limit: int = 100
    ) -> list[Standing]:
        """Users with a level, by id, beginning after the id `after`; what was last known."""
        now = self._clock()
        records = [r for r in list(self._records.values()) if r is not None and r.principal > after]
        standings = (self.rules.standing(record, now) for record in records)
        wanted = (
            s for s in standings
            if s.level is not Level.CLEAR and (level is None or s.level is level)
        )  # fmt: skip
        return heapq.nsmallest(limit, wanted, key=lambda s: s.principal)

    def explain(self, principal_id: str) -> Record:
        """All that is kept of a user, as it counts now."""
        record = self._records.get(principal_id) or Record(principal_id)
        return self.rules.settle(record, self._clock())

    # -- the store -------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """One round: fetch, write, end what has ended. False when the store did not answer."""
        try:
            if not self._is_open:
                self._store.open()
                self._is_open = True
            self._fetch()
            self._flush()
            self._sweep()
        except (StateUnavailable, ConfigError) as error:
            if not self._lost:
                logger.error("the store of users' standings does not answer: %s", error)
            self._lost = True
            return False
        if self._lost:
            logger.warning("the store of users' standings answers again")
        self._lost = False
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
                        self._dirty.update(k for k, r in self._records.items() if r is not None)
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
            self._records[key] = self.rules.join(mine, stored, now) if mine and stored else stored
        if stored and stored.reset_at > (known.reset_at if known else 0.0):
            self._tell_reset(key)

    def _flush(self) -> None:
        with self._lock:
            dirty = list(self._dirty)
        for key in dirty:
            self._change(key, lambda record, _: record, "observe", DETECTOR)

    def _change(self, key: str, rule: Rule, action: str, by: str) -> None:
        """Apply a rule to what the store has and what was found here, in the store and in memory.

        :raises StateUnavailable: nothing was changed, or nobody knows.
        """
        mine = self._records.get(key)
        stored, after, now = Record(key), Record(key), 0.0

        def change(value: bytes | None) -> bytes | None:
            nonlocal stored, after, now
            now = self._clock()
            stored = (None if value is None else _readable(key, value)) or Record(key)
            after = rule(stored if mine is None else self.rules.join(stored, mine, now), now)
            return None if self.rules.is_void(after, now) else encode(after)

        self._store.update(key, change)
        with self._lock:
            current = self._records.get(key)
            if current is not mine and current is not None:  # more was found meanwhile
                self._records[key] = self.rules.join(after, current, now)
            else:
                self._dirty.discard(key)
                if self.rules.is_void(after, now):
                    self._records.pop(key, None)
                else:
                    self._records[key] = after
        if after.reset_at > stored.reset_at:
            self._tell_reset(key)
        self._tell(stored, after, action, by, now)

    def _tell(self, stored: Record, after: Record, action: str, by: str, now: float) -> None:
        settled = self.rules.settle(stored, now)
        standing = self.rules.standing(after, now)
        steps = [("expire", TIME, stored.level, settled.level)]
        steps.append((action, by, settled.level, standing.level))
        for what, who, before, level in steps:
            if before is not level or (what == action and who not in (DETECTOR, TIME)):
                self._on_transition(
                    Transition(
                        after.principal, what, before, level, who, standing.until,
                        standing.evidence,
                    )
                )  # fmt: skip

    def _tell_reset(self, key: str) -> None:
        for callback in self._resets:
            callback(key)

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
            settled = self.rules.settle(record, now)
            if settled is not record or self.rules.is_void(record, now):
                self._change(key, self.rules.settle, "expire", TIME)
            levels[settled.level] += 1
        self._on_levels(levels)
        self._evict()

    def _evict(self) -> None:
        """Make room by forgetting the least suspicious; who is held or banned stays."""
        excess = len(self._records) - self._policy.max_users
        if excess <= 0:
            return
        spare = [
            record
            for record in list(self._records.values())
            if record and record.decided is None and record.level < Level.HELD
        ]
        room = excess + self._policy.max_users // _EVICTED_SHARE
        least = heapq.nsmallest(
            room, spare, key=lambda r: (r.level, r.found.since if r.found else 0)
        )
        if len(least) < excess:
            logger.error("the ledger is full: state.max_users are held or banned")

        def drop(value: bytes | None) -> bytes | None:
            stored = None if value is None else _readable("", value)
            is_spare = stored and stored.decided is None and stored.level < Level.HELD
            return None if is_spare else value

        for record in least:
            self._store.update(record.principal, drop)
            with self._lock:
                self._records.pop(record.principal, None)
                self._dirty.discard(record.principal)


def _readable(key: str, value: bytes) -> Record | None:
    try:
        return replace(decode(value), principal=key)
    except StateUnavailable:
        logger.error("the record of a user can't be read; was it written by a newer version?")
        return None


_UNKNOWN: Final = Record("")
