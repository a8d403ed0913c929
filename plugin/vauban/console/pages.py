"""The pages: decisions, approvals, users, policy and health."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from vauban.access.approval import ID as APPROVAL_ID
from vauban.access.approval import State
from vauban.access.identity import PRINCIPAL_ID
from vauban.access.scopes import APPROVE
from vauban.console import charts
from vauban.console.changes import changes
from vauban.console.desk import Desk, Page, is_part
from vauban.console.forms import read_query
from vauban.console.guarded import ServerRefused
from vauban.console.sessions import Session
from vauban.errors import MalformedRequest, NotFound
from vauban.types import Action, Level

EVENTS: Final = ("decision", "refused", "standing", "tool_call", "approval", "output")
MOST_EVENTS: Final = 100
MOST_APPROVALS: Final = 100
MOST_USERS: Final = 200
HOURS: Final = (1, 24, 168, 720)
ACTS: Final = ("degrade", "hold", "ban", "unban")
_LEVELS: Final = {"degrade": "degraded", "hold": "held"}
_SHOWN_APART: Final = frozenset(
    {"event", "time", "number", "principal", "action", "reason", "score", "excerpt", "policy", "id"}
)


class Pages:
    """Handlers of one console."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._server = desk.server

    # -- decisions -------------------------------------------------------------------------------

    async def decisions(self, request: Request, session: Session) -> Page:
        asked = read_query(request, "event", "action", "principal")
        wanted = {name: value for name, value in asked.items() if value}
        told = await self._server.get(session.key, "events", limit=str(MOST_EVENTS), **wanted)
        rows = [_row(event) for event in told["events"]]
        values = {
            "rows": rows, "asked": asked, "kept": told["kept"], "count": told["count"],
            "server": told["server"], "most": MOST_EVENTS, "events": EVENTS,
            "actions": [action.name.lower() for action in Action],
        }  # fmt: skip
        return Page("decisions.html", values)

    # -- approvals -------------------------------------------------------------------------------

    async def approvals(self, request: Request, session: Session) -> Page:
        state = read_query(request, "state")["state"] or State.PENDING.value
        wanted = {} if state == "all" else {"state": state}
        told = await self._server.get(session.key, "approvals", limit=str(MOST_APPROVALS), **wanted)
        rows = [{**row, "left_s": _left_s(row)} for row in told["approvals"]]
        states = [*(known.value for known in State), "all"]
        values = {"rows": rows, "state": state, "states": states, "most": MOST_APPROVALS}
        return Page("approvals.html", values)

    async def decide(self, request: Request, session: Session) -> Page | Response:
        approval_id = _approval_id(request)
        form = await self._desk.form(request, session)
        act, reason = form["act"], form["reason"].strip()
        if act not in ("approve", "deny"):
            raise MalformedRequest("approve or deny")
        if not reason:
            return await self.approval(request, session, error="Give a reason.", status=400)
        try:
            told = await self._server.post(
                session.key, "approvals", approval_id, act, reason=reason
            )
        except ServerRefused as error:
            if error.status not in (400, 403):
                raise
            why, status = f"Nothing was changed: {error}.", 409 if error.status == 403 else 400
            return await self.approval(request, session, reason, error=why, status=status)
        session.notice = f"{approval_id} is {told['state']}."
        return RedirectResponse(f"/approvals/{approval_id}", 303)

    async def approval(
        self,
        request: Request,
        session: Session,
        given: str = "",
        *,
        error: str = "",
        status: int = 200,
    ) -> Page:
        approval_id = _approval_id(request)
        found = await self._server.get(session.key, "approvals", approval_id)
        if is_part(request):
            shown = []  # the calls of an approval never change
        else:
            others = await self._server.get(session.key, "approvals", limit=str(MOST_APPROVALS))
            shown = await asyncio.to_thread(changes, found, others["approvals"])
        values = {
            "approval": found, "left_s": _left_s(found), "changes": shown, "error": error,
            "given": given,
            "own": found["caller"] == session.principal,
        }  # fmt: skip
        return Page("approval.html", values, status)

    # -- users -----------------------------------------------------------------------------------

    async def users(self, request: Request, session: Session) -> Page | Response:
        asked = read_query(request, "level", "user")
        if asked["user"]:
            return RedirectResponse(_address_of(_principal_id(asked["user"])), 303)
        wanted = {"level": asked["level"]} if asked["level"] else {}
        told = await self._server.get(session.key, "users", limit=str(MOST_USERS), **wanted)
        latest = await self._server.get(session.key, "queries", limit="50")
        values = {
            "rows": told["users"], "current": told["current"], "more": told["next"] is not None,
            "latest": latest["users"], "asked": asked, "most": MOST_USERS,
            "levels": [level.name.lower() for level in Level if level],
        }  # fmt: skip
        return Page("users.html", values)

    async def treat(self, request: Request, session: Session) -> Page | Response:
        user = _principal_id(request.path_params["user"])
        form = await self._desk.form(request, session)
        act, reason, hours = form["act"], form["reason"].strip(), form["hours"]
        if act not in ACTS:
            raise MalformedRequest("degrade, hold, ban or unban")
        if not reason:
            return await self.user(request, session, error="Give a reason.", status=400)
        body: dict[str, Any] = {"reason": reason}
        if act in _LEVELS:
            body["level"] = _LEVELS[act]
        if hours and act != "unban":
            if hours not in map(str, HOURS):
                raise MalformedRequest("one of the times in the list")
            body["seconds"] = int(hours) * 3_600
        try:
            route = "level" if act in _LEVELS else act
            told = await self._server.post(session.key, "users", user, route, **body)
        except ServerRefused as error:
            if error.status not in (400, 403):
                raise
            why = f"Nothing was changed: {error}."
            return await self.user(request, session, reason, error=why, status=400)
        session.notice = f"{user} is {told['level']} now."
        return RedirectResponse(_address_of(user), 303)

    async def user(
        self,
        request: Request,
        session: Session,
        given: str = "",
        *,
        error: str = "",
        status: int = 200,
    ) -> Page:
        user = _principal_id(request.path_params["user"])
        told = await self._server.get(session.key, "users", user)
        queries = await self._server.get(session.key, "queries", user)
        points = queries["points"]
        values = {
            "user": told, "error": error, "given": given, "hours": HOURS, "charts": charts,
            "scores": charts.scores(points, queries["levels"]),
            "places": charts.places(points, queries["cells"]),
            "own": user == session.principal,
            "times": [_clock_time(points[n]["time"]) for n in (0, -1)] if points else [],
        }  # fmt: skip
        return Page("user.html", values, status)

    # -- policy and health -----------------------------------------------------------------------

    async def policy(self, request: Request, session: Session) -> Page:
        asked = read_query(request, "find", "only")
        told = await self._server.get(session.key, "policy")
        find = asked["find"].lower()
        rows = [
            row
            for row in told["fields"]
            if (not asked["only"] or row["origin"] != "default")
            and (not find or find in f"{row['path']} {row['description']}".lower())
        ]
        values = {"rows": rows, "of": len(told["fields"]), "digest": told["digest"], "asked": asked}
        return Page("policy.html", values)

    async def health(self, _: Request, session: Session) -> Page:
        started = time.perf_counter()
        told = await self._server.get(session.key, "status")
        took_ms = (time.perf_counter() - started) * 1000
        values = {
            "status": told, "took_ms": round(took_ms, 1), "url": self._server.url,
            "sessions": len(self._desk.sessions), "may_approve": APPROVE in session.scopes,
        }  # fmt: skip
        return Page("health.html", values)


def _row(event: dict[str, Any]) -> dict[str, Any]:
    """An event in the columns that all kinds of events have."""
    kind, name = str(event["event"]), event.get
    tools = ", ".join(name("tools", ()))
    change = f"{name('from')} to {name('to')}" if kind == "standing" else ""
    return {
        "number": event["number"],
        "time": event["time"],
        "event": kind.replace("_", " "),
        "principal": name("principal", ""),
        "did": name("action") or name("decision") or (kind if kind == "refused" else ""),
        "why": name("reason") or name("code") or "",
        "score": name("score"),
        "approval": name("id", "") if kind == "approval" else "",
        "about": tools or change or name("route", "details"),
        "details": _details(event),
        "excerpt": name("excerpt"),
    }


def _details(event: dict[str, Any]) -> list[tuple[str, str]]:
    """What an event has besides the columns that all have."""
    found = []
    for name, value in event.items():
        if name in _SHOWN_APART or value in (None, "", 0, 0.0, [], {}, ()):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        found.append((name.replace("_", " "), str(value)))
    return found


def _left_s(approval: dict[str, Any]) -> int:
    """Seconds until it expires, by this machine's clock; 0 when it is over or decided."""
    if approval["state"] not in (State.PENDING.value, State.APPROVED.value):
        return 0
    ends = datetime.fromisoformat(approval["expires"])
    return max(0, int((ends - datetime.now(UTC)).total_seconds()))


def _clock_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")


def _approval_id(request: Request) -> str:
    found = str(request.path_params["approval_id"])
    if not APPROVAL_ID.fullmatch(found):
        raise NotFound("there is no approval with this id")
    return found


def _principal_id(text: str) -> str:
    if not PRINCIPAL_ID.fullmatch(text):
        raise NotFound("a user's id is key:, jwt:, anon: or gateway: and what belongs to it")
    return text


def _address_of(user: str) -> str:
    return f"/users/{quote(user, safe='')}"
