"""The policy of the operator's console, and of what a server keeps in memory for it."""

from __future__ import annotations

from vauban.policy_base import Section, field


class ConsolePolicy(Section):
    """What a server keeps in memory to show, and how long an operator stays signed in."""

    recent_events: int = field(
        500, "Newest audit events that each API server keeps to be looked at; 0: none.", "events",
        ge=0, le=10_000,
    )  # fmt: skip
    excerpt_chars: int = field(
        0,
        "Keep so many characters of the untrusted text of each of these requests, credentials"
        " redacted, in memory only; 0: no text is kept.",
        "characters",
        ge=0,
        le=2_000,
    )
    watched_users: int = field(
        500,
        "Users whose latest scores, and places on the map of the extraction reference, each API"
        " server keeps; 0: none.",
        "users",
        ge=0,
        le=10_000,
    )
    watched_queries: int = field(
        400, "Of each of them, so many queries.", "queries", ge=16, le=4_000
    )
    session_s: int = field(
        28_800, "Longest time that an operator stays signed in.", "seconds", ge=60, le=604_800
    )
    idle_s: int = field(
        1_800, "An operator who does nothing for so long is signed out.", "seconds",
        ge=30, le=86_400,
    )  # fmt: skip
    max_sessions: int = field(
        64, "Operators signed in at once; beyond it the one that is idle longest is signed out.",
        "sessions", ge=1, le=10_000,
    )  # fmt: skip
    logins_per_min: int = field(
        10, "Most attempts to sign in from one address.", "attempts per minute", ge=1, le=1_000
    )
    refresh_s: int = field(
        3, "How often an open page asks for what is new.", "seconds", ge=1, le=300
    )
    timeout_ms: int = field(
        5_000, "Longest wait for an answer of the guarded server.", "milliseconds",
        ge=100, le=60_000,
    )  # fmt: skip
