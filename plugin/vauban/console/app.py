"""The console as an ASGI application."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vauban.console.desk import Desk
from vauban.console.guarded import GuardedServer
from vauban.console.pages import Pages
from vauban.console.shield import Place, Shield
from vauban.policy_console import ConsolePolicy

_STATIC: Final = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    policy: ConsolePolicy, server: GuardedServer, place: Place,
    clock: Callable[[], float] = time.monotonic,
) -> ASGIApp:  # fmt: skip
    """:param clock: monotonic seconds, for sessions and limits."""
    desk = Desk(policy, server, place, clock)
    pages = Pages(desk)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await server.close()

    async def home(_: Request) -> Response:
        return RedirectResponse("/decisions", 303)

    routes = [
        Route("/", home),
        Route("/login", desk.sign_in_page),
        Route("/login", desk.sign_in, methods=["POST"]),
        Route("/logout", desk.sign_out, methods=["POST"]),
        Route("/decisions", desk.page(pages.decisions)),
        Route("/approvals", desk.page(pages.approvals)),
        Route("/approvals/{approval_id}", desk.page(pages.approval)),
        Route("/approvals/{approval_id}", desk.page(pages.decide), methods=["POST"]),
        Route("/users", desk.page(pages.users)),
        Route("/users/{user:path}", desk.page(pages.user)),
        Route("/users/{user:path}", desk.page(pages.treat), methods=["POST"]),
        Route("/policy", desk.page(pages.policy)),
        Route("/health", desk.page(pages.health)),
        *(Route(f"/static/{name}", _file(name, kind)) for name, kind in _STATIC.items()),
    ]
    return Shield(Starlette(routes=routes, lifespan=lifespan), place)


def _file(name: str, kind: str) -> Endpoint:
    """One of the package's own files, read once: no path of a client's is ever opened."""
    content = (files("vauban.console") / "static" / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "content-type": kind}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return answer
