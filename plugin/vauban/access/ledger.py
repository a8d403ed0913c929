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
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from vauban.access.mirror import Mirror
from vauban.access.standing import DETECTOR, Record, Rules, Standing, Transition
from vauban.errors import StateUnavailable
from vauban.policy_standing import ResponsePolicy, StatePolicy
from vauban.state.store import Store
from vauban.types import Evidence, Level, Principal


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
        self._policy = state
        self._clock = clock
        self._resets: list[Callable[[str], None]] = []
        self._mirror = Mirror(
            store,
            state,
            self.rules,
            on_transition=on_transition,
            on_levels=on_levels,
            on_reset=self._reset,
            clock=clock,
            monotonic=monotonic,
        )
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    # -- the life of a server --------------------------------------------------------------------

    def open(self) -> None:
        """Read everything, then keep up with it in the background. A store that does not answer is
        a lost store, and not the end of the start.

        :raises ConfigError: the store will never work.
        """
        with suppress(StateUnavailable):
            self._mirror.open()
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
        self._mirror.close()

    def on_reset(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with the id of every user who was forgiven or erased, here or by
        another server: whatever was gathered about them must go. From any thread."""
        self._resets.append(callback)

    def refresh(self) -> bool:
        """One exchange with the store, now. False when it did not answer."""
        return self._mirror.refresh()

    def _reset(self, principal_id: str) -> None:
        for callback in self._resets:
            callback(principal_id)

    def _run(self) -> None:
        pause_s = self._policy.refresh_ms / 1000
        while not self._stopped.is_set():
            # A lost store is not asked again for every query that would be written.
            (self._stopped if self._mirror.lost else self._wake).wait(pause_s)
            self._wake.clear()
            if not self._stopped.is_set():
                self.refresh()

    # -- every request: no waiting ---------------------------------------------------------------

    @property
    def is_fresh(self) -> bool:
        """What is known here is what the store has, give or take `state.stale_after_ms`."""
        return self._mirror.is_fresh

    def standing(self, principal_id: str) -> Standing:
        """:raises StateUnavailable: the store is lost, or this user's record can't be read."""
        record = self._mirror.get(principal_id)
        if record is None or not self._mirror.is_fresh:
            raise StateUnavailable("how this user is to be treated is not known now")
        return self.rules.standing(record, self._clock())

    def remembered(self, principal_id: str) -> Standing:
        """What was last known, however long ago."""
        return self.rules.standing(self._known(principal_id), self._clock())

    def decided(self, principal_id: str) -> Standing:
        """What operators alone have decided, as last known."""
        record = self._known(principal_id)
        by_operator = record.decided and record.decided.by != DETECTOR  # kept of a forgotten user
        decided = record.decided if by_operator else None
        return self.rules.standing(Record(principal_id, None, decided), self._clock())

    def _known(self, principal_id: str) -> Record:
        return self._mirror.get(principal_id) or Record(principal_id)

    def observe(
        self, principal: Principal, evidence: Evidence, *, began_at: float | None = None
    ) -> Standing:
        """Raise or prolong the level of a user, as far as policy lets evidence do that.

        :param began_at: when the evidence began to be gathered, seconds since the epoch. What
            began before the user was last forgiven does not count. None = it all counts.
        """
        record = self._mirror.get(principal.id)
        if record is None:  # not to be overwritten by who can't read it
            return Standing(principal.id)
        now = self._clock()
        after = self.rules.observe(
            record, evidence, service=principal.service, began_at=began_at, now=now
        )
        if after is not record:
            self._mirror.put(after, record)
            self._wake.set()
        return self.rules.standing(after, now)

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

        self._mirror.change(principal_id, rule, action, by)
        return self.remembered(principal_id)

    def forget(self, principal_id: str, *, by: str) -> Standing:
        """Erase what is kept of a user; one who is held or banned stays so, as a bare id."""
        self._mirror.change(principal_id, self.rules.forget, "forget", by)
        return self.remembered(principal_id)

    # -- reading ---------------------------------------------------------------------------------

    def users(
        self, level: Level | None = None, *, campaign: str = "", after: str = "", limit: int = 100
    ) -> list[Standing]:
        """Users with a level, by id, beginning after the id `after`; what was last known.

        :param campaign: only those who were found in it.
        """
        now = self._clock()
        records = (record for record in self._mirror.all() if record.principal > after)
        standings = (self.rules.standing(record, now) for record in records)
        wanted = (
            s for s in standings
            if s.level is not Level.CLEAR and (level is None or s.level is level)
            and (not campaign or (s.evidence is not None and s.evidence.campaign == campaign))
        )  # fmt: skip
        return heapq.nsmallest(limit, wanted, key=lambda s: s.principal)

    def levels(self) -> Mapping[Level, int]:
        """How many users are at each level; what was last known."""
        now = self._clock()
        return Counter(self.rules.settle(record, now).level for record in self._mirror.all())

    def explain(self, principal_id: str) -> Record:
        """All that is kept of a user, as it counts now."""
        return self.rules.settle(self._known(principal_id), self._clock())
