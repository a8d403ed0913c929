"""`guard_extraction`: what is known of every user, in one process, and how the others ask it.

It holds the extraction detector and the ledger of how users are treated. `guard_input` asks it for
the level of a caller before anything else happens; `guard_encoder` tells it each batch that was
encoded. Both are calls inside the server, sealed like everything between the steps.

Levels outlive the process in a shared store; the detector's windows do not.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vauban.access.standing import Standing, Transition
from vauban.errors import StateUnavailable
from vauban.hosts.triton.seal import Bundle, Seal
from vauban.policy import Policy
from vauban.policy_standing import MEMORY
from vauban.screening import watcher
from vauban.state.store import require_shared
from vauban.telemetry import AuditLog
from vauban.treatment import Treatment
from vauban.types import Evidence, Level, Mode, Principal, PrincipalKind, Reason

logger = logging.getLogger(__name__)

ASKED: Final = "asked"
KNOWN: Final = "known"
RETRY_AFTER_S: Final = 1.0
MAX_WAITING_BATCHES: Final = 256

Embeddings = NDArray[np.float32]
"""[requests, numbers], each of unit length."""


@dataclass(frozen=True, slots=True)
class Who:
    """A principal as the detector is told of it; it travels with the windows of its request."""

    id: str
    kind: str
    service: bool = False
    group: str = ""

    @classmethod
    def of(cls, principal: Principal) -> Who:
        return cls(principal.id, principal.kind.value, principal.service, principal.group)

    @property
    def principal(self) -> Principal:
        kind = PrincipalKind(self.kind)
        return Principal(self.id, kind, service=self.service, group=self.group)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One encoded request. See `guard.watch_each`."""

    embedding: Embeddings
    parts: None = None


class GuardExtraction:
    """
    :param instances: how many of this model there are.
    :param on_evidence: called with what the detector says of each request, for metrics.
    :param on_transition: called with each change of a user's level, from any thread.
    :raises ConfigError: a store of one process for several instances; no FAISS, reference or store.
    """

    def __init__(
        self,
        policy: Policy,
        seal: Seal,
        *,
        instances: int = 1,
        on_evidence: Callable[[Evidence | Reason], None] = lambda _: None,
        on_transition: Callable[[Transition], None] = lambda _: None,
    ) -> None:
        if policy.response.mode is not Mode.OFF:
            require_shared(policy.state, instances=instances)
        self._seal = seal
        self._on_evidence = on_evidence
        self._on_transition = on_transition
        self._audit = AuditLog(policy.audit)
        self._watch = watcher(policy.extraction, policy.state)
        self._treatment = Treatment(policy, on_transition=self._changed)
        self._treatment.ledger.open()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._treatment.ledger.close()

    def __call__(self, asked: bytes) -> bytes:
        """The answer to one question of another model.

        :raises MalformedRequest: it is not from this server.
        :raises StandingUnknown: the store is lost and policy says to serve nobody.
        """
        bundle = self._seal.open(ASKED, asked)
        if (principal_id := bundle.fields.get("standing")) is not None:
            standing = self._treatment.standing(principal_id)
            return self._seal.close(KNOWN, Bundle(bundle.ticket, _row(standing)))
        callers = [Who(**row).principal for row in bundle.fields["callers"]]
        embeddings = np.frombuffer(bundle.data, np.float32).reshape(len(callers), -1)
        self._learn(callers, embeddings)
        return self._seal.close(KNOWN, Bundle(bundle.ticket, {}))

    def _learn(self, principals: Sequence[Principal], embeddings: Embeddings) -> None:
        if self._watch is None:
            return
        treatment = self._treatment
        callers = [treatment.caller(principal, None, 1) for principal in principals]
        evidence = self._watch(callers, [_Seen(row) for row in embeddings])
        for principal, known in zip(principals, evidence, strict=True):
            treatment.learn(principal, known)
            if known is not None:
                self._on_evidence(known)

    def _changed(self, transition: Transition) -> None:
        self._on_transition(transition)
        self._audit.transition(transition)


class Users:
    """`guard_extraction`, as the other models ask it. See `guard.Standings`.

    :param ask: gives it sealed bytes and gives back its answer; raises `StateUnavailable`.
    :param max_users: how many standings are remembered, of those that are fresh, and of those who
        were not treated as everybody, for the time when it does not answer.
    :param fresh_s: how long a standing counts before it is asked for again. A request then waits
        for it only now and then. Whoever is held or banned is asked for each time.
    """

    def __init__(
        self,
        ask: Callable[[bytes], bytes],
        seal: Seal,
        max_users: int = 0,
        fresh_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._fresh: OrderedDict[str, tuple[float, Standing]] = OrderedDict()
        self._clock = clock
        self._silent_until = -math.inf
        self._seal = seal
        self._max_users = max_users
        self._remembered: OrderedDict[str, Standing] = OrderedDict()

    def standing(self, principal_id: str) -> Standing:
        """:raises StateUnavailable: it does not answer."""
        now = self._clock()
        while self._fresh and next(iter(self._fresh.values()))[0] <= now - self._fresh_s:
            self._fresh.popitem(last=False)
        if principal_id in self._fresh:
            return self._fresh[principal_id][1]
        answer = self._send(Bundle("", {"standing": principal_id}))
        level = Level(answer.fields.pop("level"))
        standing = Standing(principal_id, level, **answer.fields)
        self._remembered.pop(principal_id, None)
        if level is not Level.CLEAR:
            self._remembered[principal_id] = standing
            while len(self._remembered) > self._max_users:
                self._remembered.popitem(last=False)
        if level < Level.HELD and len(self._fresh) < self._max_users:
            self._fresh[principal_id] = now, standing
        return standing

    def remembered(self, principal_id: str) -> Standing:
        return self._remembered.get(principal_id, Standing(principal_id))

    def watch(self, callers: Sequence[Who], embeddings: Embeddings) -> None:
        """Tell it of a batch.

        :raises StateUnavailable: it does not answer, and has seen nothing of this batch.
        """
        rows = [asdict(caller) for caller in callers]
        self._send(Bundle("", {"callers": rows}, embeddings.astype(np.float32).tobytes()))

    def _send(self, bundle: Bundle) -> Any:
        """Triton takes a second to say that a model's process is gone, so not every request waits
        for that."""
        if self._clock() < self._silent_until:
            raise StateUnavailable("guard_extraction did not answer a moment ago")
        try:
            answer = self._ask(self._seal.close(ASKED, bundle))
        except StateUnavailable:
            self._silent_until = self._clock() + RETRY_AFTER_S
            raise
        return self._seal.open(KNOWN, answer)


class Watching:
    """Tells `guard_extraction` of batches on a thread of its own: no verdict waits for it.

    What can't be told is logged, without who it was. At most `MAX_WAITING_BATCHES` wait.
    """

    def __init__(self, users: Users) -> None:
        self._users = users
        self._thread = ThreadPoolExecutor(1, "watching")
        self._room = threading.BoundedSemaphore(MAX_WAITING_BATCHES)

    def watch(self, callers: Sequence[Who], embeddings: Embeddings) -> None:
        """:raises StateUnavailable: too many batches wait already."""
        if not self._room.acquire(blocking=False):
            raise StateUnavailable("guard_extraction is too far behind")
        telling = self._thread.submit(self._users.watch, callers, embeddings)
        telling.add_done_callback(partial(self._told, len(callers)))

    def close(self) -> None:
        """End, once it was told of what waits."""
        self._thread.shutdown()

    def _told(self, requests: int, telling: Future[None]) -> None:
        self._room.release()
        if error := telling.exception():
            logger.error("%d requests stay unseen: %s", requests, type(error).__name__)


def at_start(policy: Policy) -> str:
    """What an operator should know of a process that begins now."""
    if policy.response.mode is Mode.OFF:
        return "nobody has a level: response.mode is off"
    kept = "are forgotten" if policy.state.store == MEMORY else "are read from the store"
    return f"levels of users {kept} when this model is loaded again; what they asked is forgotten"


def _row(standing: Standing) -> dict[str, Any]:
    """Without an operator's words, which no other model needs."""
    return {
        "level": int(standing.level), "since": standing.since, "until": standing.until,
        "by": standing.by,
    }  # fmt: skip
