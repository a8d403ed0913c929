"""Signing in and out, and what all pages share: the session, the frame, and what goes wrong.

The console holds no credential of its own and opens no store: it asks the guarded server's routes
with the key of the operator who is signed in. So it can do what that operator can and nothing else,
the server checks scopes, who asked and what is void, exactly as for `vauban approvals` and `vauban
users`, and its audit log has the operator's id. The other choice, the stores themselves, would take
the secret that binds approvals, and put a second process in charge of all users.

Covers: other sites' pages (forms, frames, rebinding), texts of callers and models in pages,
planted and guessed sessions. Does not cover: other programs of the operator's own machine; a
cookie is for a host, whatever the port, so another server on the same loopback address sees it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from vauban.access.identity import MAX_HEADER_CHARS
from vauban.access.ratelimit import RateLimiter
from vauban.access.scopes import ADMIN, APPROVE, CONSOLE
from vauban.console.forms import Form, read_form, read_query
from vauban.console.guarded import GuardedServer, ServerDown, ServerRefused
from vauban.console.render import environment, render
from vauban.console.sessions import Session, Sessions
from vauban.console.shield import Place
from vauban.errors import RateLimited, RequestError
from vauban.policy_console import ConsolePolicy
from vauban.treatment import moment
from vauban.types import Principal, PrincipalKind, RateLimit

PART_HEADER: Final = "x-console-part"
"""A page that is open asks for its own middle again."""
PAGES: Final = (
    ("decisions", "Decisions", CONSOLE),
    ("approvals", "Approvals", APPROVE),
    ("users", "Users", ADMIN),
    ("policy", "Policy", CONSOLE),
    ("health", "Health", CONSOLE),
)
_KEY: Final = re.compile(r"[!-~]{8,}")
_ENDED: Final = "You were signed out: the session ended, or the key is not accepted any more."
_CONFLICTS: Final = frozenset({"approval_refused"})


@dataclass(frozen=True, slots=True)
class Page:
    """What a handler gives: a template, what is in it, and the status."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


Handler = Callable[[Request, Session], Awaitable[Page | Response]]


class Desk:
    """:param clock: monotonic seconds."""

    def __init__(
        self, policy: ConsolePolicy, server: GuardedServer, place: Place,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.server = server
        self.sessions = Sessions(policy, clock)
        self._place = place
        self._templates = environment()
        self._limiter = RateLimiter(clock=clock)
        port = min(place.hosts).rpartition(":")[2]
        # By port, so that two consoles on one machine don't sign each other's operators out.
        self._cookie = "__Host-vauban" if place.encrypted else f"vauban_{port}"

    # -- signing in and out ----------------------------------------------------------------------

    async def sign_in_page(self, request: Request) -> Response:
        try:
            ended = read_query(request, "ended")["ended"]
        except RequestError as error:
            return self._not_in(f"{error.message}.", error.status)
        return self._html(Page("login.html", {"error": "", "ended": _ENDED if ended else ""}))

    async def sign_in(self, request: Request) -> Response:
        try:
            self._count_attempt(request)
            form = await read_form(request)
            key = form["key"].strip()
            if not _KEY.fullmatch(key) or len(key) > MAX_HEADER_CHARS:
                return self._not_in("This is not a key.", 401)
            principal, scopes = await self.server.who(key)
        except RateLimited as error:
            answer = self._not_in("Too many attempts. Wait, then try again.", 429)
            answer.headers["retry-after"] = str(error.retry_after_s)
            return answer
        except RequestError as error:
            return self._not_in(f"Not signed in: {error.message}.", error.status)
        except ServerDown as error:
            return self._not_in(f"The guarded server does not answer: {error}.", 503)
        except ServerRefused as error:
            return self._not_in(_why_not(error), 401 if error.status == 401 else 403)
        answer = RedirectResponse("/decisions", 303)
        session_id = self.sessions.begin(key, principal, scopes)
        answer.set_cookie(
            self._cookie, session_id, max_age=self.policy.session_s, path="/",
            secure=self._place.encrypted, httponly=True, samesite="strict",
        )  # fmt: skip
        if (old := request.cookies.get(self._cookie)) is not None:
            self.sessions.end(old)
        return answer

    async def sign_out(self, request: Request) -> Response:
        session = self._session(request, acts=True)
        if session is not None:
            try:
                form = await read_form(request)
            except RequestError as error:
                return self._problem(request, session, error.message, error.status)
            if not session.is_own_form(form["csrf"]):
                return self._problem(request, session, "this form is not of this session", 403)
        return self._signed_out(request, "/login")

    def _count_attempt(self, request: Request) -> None:
        """:raises RateLimited: the address has tried too often."""
        host = request.client.host if request.client else "local"
        limit = RateLimit(self.policy.logins_per_min)
        self._limiter.admit(Principal(f"anon:{host}", PrincipalKind.ANONYMOUS, limit=limit))

    def _not_in(self, error: str, status: int) -> Response:
        return self._html(Page("login.html", {"error": error, "ended": ""}, status))

    def _session(self, request: Request, *, acts: bool) -> Session | None:
        found = request.cookies.get(self._cookie)
        return self.sessions.find(found, acts=acts) if found else None

    def _signed_out(self, request: Request, to: str) -> Response:
        # A redirect would be followed by the script, and leave the old page standing.
        answer = Response(status_code=401) if is_part(request) else RedirectResponse(to, 303)
        found = request.cookies.get(self._cookie)
        if found is not None:  # a link from another site sends none, and must not sign anybody out
            self.sessions.end(found)
            answer.delete_cookie(
                self._cookie, path="/", secure=self._place.encrypted, httponly=True,
                samesite="strict",
            )  # fmt: skip
        return answer

    # -- pages -----------------------------------------------------------------------------------

    def page(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """A page for whoever is signed in, and what is shown when the server says no."""

        async def answer(request: Request) -> Response:
            session = self._session(request, acts=not is_part(request))
            if session is None:
                return self._signed_out(request, "/login")
            try:
                found = await handler(request, session)
            except ServerDown as error:
                why = f"The guarded server does not answer ({error})."
                if request.method == "POST":
                    why += " Look whether it was done before you try again."
                return self._problem(request, session, why, 503)
            except ServerRefused as error:
                if error.status == 401:
                    return self._signed_out(request, "/login?ended=1")
                status = 409 if error.code in _CONFLICTS else error.status
                return self._problem(request, session, error.args[0], status)
            except RequestError as error:
                return self._problem(request, session, error.message, error.status)
            if isinstance(found, Response):
                return found
            return self._html(found, request, session)

        return answer

    async def form(self, request: Request, session: Session) -> Form:
        """The form of this session's own page.

        :raises RequestError: it is not.
        """
        form = await read_form(request)
        if not session.is_own_form(form["csrf"]):
            raise _NotOwn("this form is not of this session: go back, reload, and try again")
        return form

    def _problem(self, request: Request, session: Session, why: str, status: int) -> Response:
        return self._html(Page("problem.html", {"why": why}, status), request, session)

    def _html(
        self, page: Page, request: Request | None = None, session: Session | None = None
    ) -> Response:
        as_part = request is not None and is_part(request)
        name = page.name.replace(".html", "_part.html") if as_part else page.name
        values: dict[str, Any] = {
            "pages": [page[:2] for page in PAGES if session and page[2] in session.scopes],
            "here": request.url.path.split("/")[1] if request else "",
            "address": _address_of(request),
            "session": session,
            "notice": session.take_notice() if session and not as_part else "",
            "refresh_s": self.policy.refresh_s,
            "asked_at": moment(time.time()),
            **page.values,
        }
        return HTMLResponse(render(self._templates, name, values), page.status)


class _NotOwn(RequestError):
    status = 403
    code = "not_own_form"


def is_part(request: Request) -> bool:
    return request.method == "GET" and PART_HEADER in request.headers


def _address_of(request: Request | None) -> str:
    """Of this very page, to be asked for again."""
    if request is None:
        return ""
    path, query = (str(request.scope[n], "latin-1") for n in ("raw_path", "query_string"))
    return path + (f"?{query}" if query else "")


def _why_not(error: ServerRefused) -> str:
    if error.status == 401:
        return "The guarded server does not accept this key."
    if error.code == "insufficient_scope":
        return f"This key does not have the scope {CONSOLE}."
    return f"The guarded server refuses: {error}"
