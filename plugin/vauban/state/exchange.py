"""Sums that several processes add to, without anybody waiting for the store.

Each process adds to its own view at once. One thread carries what was added to the store, and
brings back the sums with what the others have added; views agree `state.refresh_ms` later. What
the store forgets (`drop_counts`, or all its data) is forgotten by every view after the next
exchange of that key.

An addition is sent once: whether a store that did not answer has taken it, nobody knows, and one
that was only slow would take every repetition. It stays in this process's view until the next
answer. Does not cover: strict counting.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from vauban.errors import ConfigError, StateUnavailable
from vauban.policy_standing import StatePolicy
from vauban.state.store import Store, check_counts

logger = logging.getLogger(__name__)

MAX_KEYS: Final = 32_768
"""Keys whose sums are remembered; those asked for longest ago are forgotten, here only."""
MAX_KEYS_PER_CALL: Final = 1_024


class Exchange:
    """Methods may be called from any thread; only `refresh`, `open` and `close` wait."""

    def __init__(self, store: Store, policy: StatePolicy) -> None:
        self._store = store
        self._policy = policy
        self._lock = threading.Lock()  # of the three below
        self._known: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._added: dict[str, dict[str, float]] = {}  # not sent yet
        self._sent: dict[str, dict[str, float]] = {}  # and no answer yet
        self._io = threading.Lock()
        self._is_open = False
        self._lost = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    # -- the life of a process -----------------------------------------------------------------

    def open(self) -> None:
        """Go on in the background from now on. A store that does not answer now may later."""
        self._thread = threading.Thread(target=self._run, name="vauban-exchange", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(2 * self._policy.timeout_ms / 1000 + 1)
            self._thread = None
        self.refresh()
        self._store.close()

    def _run(self) -> None:
        while not self._stopped.wait(self._policy.refresh_ms / 1000):
            self.refresh()

    # -- no waiting ----------------------------------------------------------------------------

    def add(self, key: str, counts: Mapping[str, float]) -> None:
        """Add to the sums of a key, and have them fetched. Of nothing: only have them fetched.

        What no store takes (a name without end, a number that is none) is counted here alone: sent,
        it would be refused together with what is sent beside it, again and again.
        """
        part = self._added if _can_be_stored(key, counts) else self._known
        with self._lock:
            _add(part.setdefault(key, {}), counts)
            self._known.setdefault(key, {})
            self._known.move_to_end(key)
            while len(self._known) > MAX_KEYS:
                self._leave(next(iter(self._known)))

    def sums(self, key: str) -> dict[str, float]:
        """As this process knows them now; empty for a key that nobody has added to."""
        with self._lock:
            found = dict(self._known.get(key, ()))
            for more in (self._sent, self._added):
                _add(found, more.get(key, {}))
            return found

    def leave(self, key: str) -> None:
        """Forget a key, here only."""
        with self._lock:
            self._leave(key)

    def _leave(self, key: str) -> None:
        for part in (self._known, self._added, self._sent):
            part.pop(key, None)

    # -- the store -----------------------------------------------------------------------------

    def refresh(self) -> bool:
        """One exchange, now. False when the store did not answer."""
        with self._io:
            try:
                if not self._is_open or self._lost:
                    self._store.open()  # asks without adding
                    self._is_open = True
                while self._send():
                    pass
            except (StateUnavailable, ConfigError) as error:
                self._keep()
                if not self._lost:
                    logger.error("what others know of callers can't be fetched: %s", error)
                self._lost = True
                return False
            self._lost = False
            return True

    def _send(self) -> bool:
        """One call to the store; whether there is more to send."""
        with self._lock:
            for key in list(self._added)[:MAX_KEYS_PER_CALL]:
                self._sent[key] = self._added.pop(key)
            batch = list(self._sent.items())
        if batch:
            # A key that nobody has added to must not begin to exist for having been asked for.
            totals = self._store.add_counts(
                [(key, {name: n for name, n in counts.items() if n}) for key, counts in batch]
            )
            with self._lock:
                for (key, _), total in zip(batch, totals, strict=True):
                    if self._sent.pop(key, None) is not None:  # else it has left meanwhile
                        self._known[key] = total
        with self._lock:
            return bool(self._added)

    def _keep(self) -> None:
        with self._lock:
            for key, counts in self._sent.items():
                _add(self._known.setdefault(key, {}), counts)
            self._sent.clear()


def _can_be_stored(key: str, counts: Mapping[str, float]) -> bool:
    try:
        check_counts([(key, counts)])
    except ValueError:
        return False
    return True


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, number in more.items():
        sums[name] = sums.get(name, 0.0) + number
