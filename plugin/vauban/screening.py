"""A bounded queue in front of the encoder: whatever is waiting is encoded as one batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vauban.detectors.windows import Windows
from vauban.errors import ConfigError
from vauban.guard import Seen, encode_each, watch_each
from vauban.policy_extraction import ExtractionPolicy
from vauban.policy_standing import MEMORY, StatePolicy
from vauban.state.exchange import Exchange
from vauban.state.store import open_store
from vauban.types import Caller, Evidence, Mode, Reason

if TYPE_CHECKING:
    from vauban.detectors.encoder import Encoded
    from vauban.detectors.extraction.detector import ExtractionDetector


Watch = Callable[
    [Sequence[Caller | None], Sequence[Seen | Reason]], Sequence[Evidence | Reason | None]
]

DAY_S = 86_400
SLICE_TOKENS = 65_536
"""Most tokens that one pass over the waiting requests takes at once."""


@dataclass(frozen=True, slots=True)
class Screened:
    """The outcome for one request, and what it cost.

    `batch` is how many requests shared the forward pass; `queue_ms` the wait before it,
    `encode_ms` the pass itself. `evidence`: what is known of the caller now, why that could not
    be said, or None where nobody watches.
    """

    outcome: Encoded | Reason
    batch: int = 1
    queue_ms: float = 0.0
    encode_ms: float = 0.0
    evidence: Evidence | Reason | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    windows: Windows
    caller: Caller | None
    done: Future[Screened]
    since: float


class ScreenQueue:
    """Encodes on its own thread. All that waits when the thread is free goes into one batch.

    :param encode: `Encoder.encode`.
    :param watch: told the callers and what was encoded for them, a batch at a time, on this
        queue's thread; `watch_each` with a detector.
    :param max_tokens: tokens that may wait; a request over that is answered at once with
        `Reason.SCREEN_OVERLOADED`. A single request is always taken when nothing waits.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Windows]], Sequence[Encoded]],
        max_tokens: int,
        watch: Watch | None = None,
    ) -> None:
        self._encode = encode
        self._watch = watch
        self._max_tokens = max_tokens
        self._waiting: deque[_Waiting] = deque()
        self._tokens = 0
        self._closed = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="vauban-encoder", daemon=True)
        self._thread.start()

    def submit(
        self, batch: Sequence[Windows], callers: Sequence[Caller | None] = ()
    ) -> list[Future[Screened]]:
        """Queue requests together. The futures never fail; a failure is an outcome.

        :param callers: who sent each of them; nothing is learned about None.
        """
        futures: list[Future[Screened]] = [Future() for _ in batch]
        now = time.perf_counter()
        with self._wake:
            callers = callers or [None] * len(batch)
            for windows, caller, future in zip(batch, callers, futures, strict=True):
                tokens = windows.tokens
                if self._closed or (self._waiting and self._tokens + tokens > self._max_tokens):
                    future.set_result(Screened(Reason.SCREEN_OVERLOADED))
                    continue
                self._tokens += tokens
                self._waiting.append(_Waiting(windows, caller, future, now))
            self._wake.notify()
        return futures

    def close(self) -> None:
        """Stop taking requests; those that wait are still answered."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if not self._waiting:
                    return
                waiting = self._take()
            # A client that left while waiting has cancelled its future: don't encode for it.
            if batch := [w for w in waiting if w.done.set_running_or_notify_cancel()]:
                self._answer(batch)

    def _take(self) -> list[_Waiting]:
        """The oldest that wait, up to a slice: a giant must not hold up all that came with it."""
        taken: list[_Waiting] = []
        tokens = 0
        while self._waiting:
            needed = self._waiting[0].windows.tokens
            if taken and tokens + needed > SLICE_TOKENS:
                break
            tokens += needed
            taken.append(self._waiting.popleft())
        self._tokens -= tokens
        return taken

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        started = time.perf_counter()
        outcomes = encode_each(self._encode, [item.windows for item in batch])
        encode_ms = (time.perf_counter() - started) * 1000
        evidence: Sequence[Evidence | Reason | None] = [None] * len(batch)
        if self._watch is not None:
            evidence = self._watch([item.caller for item in batch], outcomes)
        for item, outcome, known in zip(batch, outcomes, evidence, strict=True):
            queue_ms = (started - item.since) * 1000
            item.done.set_result(Screened(outcome, len(batch), queue_ms, encode_ms, known))


class Watcher:
    """The extraction detector, as a queue tells it of each batch.

    :param exchange: open; where the detector keeps together with other processes what accumulates.
    """

    def __init__(self, detector: ExtractionDetector, exchange: Exchange | None = None) -> None:
        self._detector = detector
        self._exchange = exchange

    def __call__(
        self, callers: Sequence[Caller | None], outcomes: Sequence[Seen | Reason]
    ) -> Sequence[Evidence | Reason | None]:
        return watch_each(self._detector, callers, outcomes)

    def close(self) -> None:
        """Give what has accumulated here to the store, if that answers."""
        if self._exchange is not None:
            self._exchange.close()


def watcher(policy: ExtractionPolicy, state: StatePolicy | None = None) -> Watcher | None:
    """What a queue tells of each batch: the extraction detector, unless the policy has it off.

    :param state: where what accumulates about a caller is kept, for all processes that share it;
        default: in this one.
    :raises WeightsError: the reference can't be loaded.
    :raises ConfigError: FAISS or the store's client is not installed.
    """
    if policy.mode is Mode.OFF:
        return None
    try:
        from vauban.detectors.extraction.detector import ExtractionDetector  # loads faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise ConfigError(
            "extraction detection needs FAISS: install faiss-cpu or faiss-gpu (vauban[cpu] and"
            " vauban[gpu] have them), or set extraction.mode: off"
        ) from None
    state = state or StatePolicy()
    retention_s = state.retention_days * DAY_S
    if state.store == MEMORY:
        return Watcher(ExtractionDetector(policy, retention_s=retention_s))
    exchange = Exchange(open_store(state), state)
    exchange.open()
    detector = ExtractionDetector(policy, exchange=exchange, retention_s=retention_s)
    return Watcher(detector, exchange)
