"""How a caller is treated, and what changes that: the ledger, fed by the extraction detector.

The level is asked for before a request is read; what the detector knows after it is entered for
the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from vauban.access.identity import address_block
from vauban.access.ledger import Ledger
from vauban.access.ratelimit import slowed
from vauban.access.standing import Standing, Transition
from vauban.errors import Banned, HeldForReview
from vauban.guard import standing_of, unwatched
from vauban.policy import Policy
from vauban.policy_standing import ResponsePolicy
from vauban.state.store import open_store
from vauban.types import Caller, Evidence, Level, Mode, Principal, PrincipalKind, Reason

MAX_FORGIVEN: Final = 10_000
"""Users forgiven since the start whose windows must begin anew."""


class Treatment:
    """Of all callers of one process.

    :param on_transition, on_levels: as `Ledger` has them.
    :raises ConfigError: there is no such store.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        on_transition: Callable[[Transition], None] = lambda _: None,
        on_levels: Callable[[Mapping[Level, int]], None] = lambda _: None,
    ) -> None:
        self._policy = policy
        self.ledger = Ledger(
            open_store(policy.state),
            policy.state,
            policy.response,
            on_transition=on_transition,
            on_levels=on_levels,
        )
        self.ledger.on_reset(self._forgive)
        self._forgiven: dict[str, float] = {}
        self._unwatched = False  # the extraction detector failed on what it was given last

    def standing(self, principal_id: str) -> Standing:
        """How a caller is treated now.

        :raises StandingUnknown: the store is lost and policy says to serve nobody.
        """
        if self._policy.response.mode is Mode.OFF:
            return Standing(principal_id)
        if self._policy.response.mode is Mode.MONITOR:
            return self.ledger.remembered(principal_id)
        standing = standing_of(self.ledger, principal_id, self._policy.state)
        return unwatched(standing, self._policy.extraction) if self._unwatched else standing

    def caller(self, principal: Principal, address: str | None, prompts: int) -> Caller:
        """A principal as the extraction detector is told of it.

        :param address: where the request comes from, None where that is not known.
        """
        group = f"group:{principal.group}" if principal.group else ""
        tags = tuple(tag for tag in (group, address_block(address)) if tag)
        forgiven_at = self._forgiven.get(principal.id, 0.0)
        return Caller(principal.id, principal.service, tags, forgiven_at, prompts)

    def learn(self, principal: Principal, evidence: Evidence | Reason | None) -> None:
        """Enter what the extraction detector knows of a caller after a query."""
        if evidence is None:
            return
        self._unwatched = isinstance(evidence, Reason)
        if isinstance(evidence, Reason):
            return
        response = self._policy.response
        if response.mode is Mode.OFF or self._policy.extraction.mode is Mode.MONITOR:
            return
        if principal.kind is PrincipalKind.ANONYMOUS:
            worst = Level[response.anonymous_ceiling.upper()]
            evidence = replace(evidence, level=min(evidence.level, worst))
        self.ledger.observe(principal, evidence, began_at=evidence.began_at)

    def _forgive(self, principal_id: str) -> None:
        """From any thread. A window that began before must not count again; see `Caller`."""
        self._forgiven[principal_id] = time.time()
        while len(self._forgiven) > MAX_FORGIVEN:
            self._forgiven.pop(next(iter(self._forgiven)), None)


def refuse(standing: Standing, now: float) -> None:
    """:raises Banned: :raises HeldForReview: the caller is not served at this level."""
    if standing.level is Level.HELD:
        raise HeldForReview("this credential is held until an operator of the server has decided")
    if standing.level is Level.BANNED:
        if standing.until is None:
            raise Banned("this credential is banned")
        wait_s = math.ceil(standing.until - now)
        raise Banned(f"this credential is banned until {moment(standing.until)}",
                     retry_after_s=wait_s)  # fmt: skip


def treated(principal: Principal, level: Level, policy: ResponsePolicy) -> Principal:
    """The caller with the rate limits of the level."""
    if level < Level.SLOWED:
        return principal
    limit = slowed(principal.limit, policy.slow_factor, policy.slow_requests_per_min)
    return replace(principal, limit=limit)


def moment(seconds: float) -> str:
    """RFC 3339, in UTC, to the second; the last moment there is, for later ones."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "9999-12-31T23:59:59Z"
