"""What a level means for a request to vLLM: refused, slowed, degraded, or served as ever."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from vauban.access.ratelimit import slowed
from vauban.access.standing import Standing
from vauban.errors import Banned, HeldForReview
from vauban.policy_standing import ResponsePolicy
from vauban.types import Level, Principal

STANDING_HEADER: Final = "x-vauban-standing"
PRIORITY_HEADER: Final = "x-vllm-priority"
"""vLLM reads it before the field `priority` of the body; lower is served earlier."""


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
