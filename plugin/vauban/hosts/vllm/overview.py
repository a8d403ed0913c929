"""The console's routes: what this server does and has done of late. They change nothing.

    GET /vauban/me                             {"id", "scopes"}: who asks
    GET /vauban/events?limit=&event=&principal=&action=    {"events": [...]}, newest first
    GET /vauban/policy                         {"digest", "fields": [...]}, each with its origin
    GET /vauban/status                         {"server", "since", "stores", ...}
    GET /vauban/queries?limit=                 {"users": [...]}, who asked last first
    GET /vauban/queries/ID                     {"points": [...], "cells": [...], "levels": {...}}

Scope `console`; the last two, which are about users, take `admin`. Events and queries are those of
the one API server that answers: `server` tells which, where there are several.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import asdict
from typing import Any, Final

from vauban import __version__
from vauban.access.approval import State
from vauban.access.identity import PRINCIPAL_ID
from vauban.errors import NotFound, StateUnavailable
from vauban.hosts.vllm.answers import Answer, json_body
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.query import read_limit, read_query
from vauban.policy_sources import explain, shown
from vauban.policy_standing import MEMORY, SQLITE
from vauban.treatment import moment
from vauban.types import Level, Mode, Principal

MAX_LISTED: Final = 1_000
_QUERIES: Final = "/vauban/queries/"
_MASKED: Final = frozenset({"output.canaries"})
"""Fields whose values are secrets of a kind: their number is told."""


class OverviewApi:
    """Answers for one front."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._server = secrets.token_hex(4)
        self._since = time.time()
        self._cells: list[list[float]] | None = None

    async def answer(
        self, _method: str, path: str, query: bytes, _raw: bytes, operator: Principal
    ) -> Answer:
        """:raises RequestError: not what the route takes, or no such user."""
        if path == "/vauban/me":
            body: dict[str, Any] = {"id": operator.id, "scopes": sorted(operator.scopes)}
        elif path == "/vauban/events":
            body = self._events(query)
        elif path == "/vauban/policy":
            body = self._policy()
        elif path == "/vauban/status":
            body = await self._status()
        elif path == "/vauban/queries":
            body = self._latest(query)
        else:
            body = await self._queries(path.removeprefix(_QUERIES))
        return Answer(200, json_body({**body, "server": self._server}))

    def _events(self, query: bytes) -> dict[str, Any]:
        asked = read_query(query, "limit", "event", "principal", "action")
        recent = self._front.recent_events
        wanted = {name: asked[name] for name in ("event", "principal", "action")}
        return {
            "events": [
                {**event, "time": moment(event["time"])}
                for event in recent.newest(read_limit(asked["limit"], MAX_LISTED), **wanted)
            ],
            "kept": len(recent),
            "count": recent.count,
        }

    def _policy(self) -> dict[str, Any]:
        fields = [
            {
                "path": row.path,
                "value": f"{len(row.value)} set" if row.path in _MASKED else shown(row.value),
                "default": shown(row.default),
                "origin": row.source,
                "unit": row.unit,
                "allowed": row.allowed,
                "description": row.description,
                "variable": row.variable,
            }
            for row in explain(self._front.loaded_policy)
        ]
        return {"digest": self._front.digest, "fields": fields}

    async def _status(self) -> dict[str, Any]:
        front, policy = self._front, self._front.policy
        modes = {
            name: getattr(policy, name).mode.value
            for name in ("injection", "extraction", "tools", "response")
        }
        return {
            "version": __version__,
            "model": front.default_model,
            "since": moment(self._since),
            "api_servers": front.api_servers,
            "screens_in": front.place,
            "policy": front.digest,
            "modes": modes,
            "in_flight": front.in_flight,
            "max_in_flight": policy.limits.max_in_flight,
            "keys": not front.identity.anonymous_allowed,
            "standing": {
                "store": _kind(policy.state.store),
                "current": front.ledger.is_fresh,
                "levels": await asyncio.to_thread(self._levels),
            },
            "approvals": await self._approvals(),
            "events": {"kept": len(front.recent_events), "most": front.recent_events.max_events},
        }

    def _levels(self) -> dict[str, int]:
        """Of all users, so not on the thread that serves."""
        found = self._front.ledger.levels()
        return {level.name.lower(): found[level] for level in Level if level}

    async def _approvals(self) -> dict[str, Any]:
        gate = self._front.tool_gate
        if self._front.policy.tools.mode is Mode.OFF:
            return {"current": True, "waiting": 0}
        try:
            found = await asyncio.to_thread(gate.approvals.all)
        except StateUnavailable:
            return {"current": False, "waiting": None}
        return {"current": True, "waiting": sum(a.state is State.PENDING for a in found)}

    def _latest(self, query: bytes) -> dict[str, Any]:
        limit = read_limit(read_query(query, "limit")["limit"], MAX_LISTED)
        latest = self._front.recent_queries.latest(limit)
        return {
            "users": [
                {"id": user, "queries": number, "last": moment(point.time), "score": point.score}
                for user, number, point in latest
            ]
        }

    async def _queries(self, user: str) -> dict[str, Any]:
        if not PRINCIPAL_ID.fullmatch(user):
            raise NotFound("a user's id is key:, jwt:, anon: or gateway: and what belongs to it")
        points = [asdict(point) for point in self._front.recent_queries.of(user)]
        if points and self._cells is None:
            self._cells = await asyncio.to_thread(self._load_cells)
        levels = self._front.policy.extraction.levels
        return {
            "id": user,
            "points": points,
            "cells": (self._cells or []) if points else [],
            "levels": {level.name.lower(): bound for level, bound in levels},
        }

    def _load_cells(self) -> list[list[float]]:
        from vauban.detectors.extraction.plane import Plane
        from vauban.detectors.extraction.reference import Reference

        reference = Reference.load(self._front.policy.extraction.reference)
        cells: list[list[float]] = Plane.of(reference.projection).cells.round(3).tolist()
        return cells


def _kind(store: str) -> str:
    """What kind of store it is; not where, which is nobody's business here."""
    if store == MEMORY:
        return MEMORY
    return "sqlite" if store.startswith(SQLITE) else "valkey"
