"""The front half: a pure ASGI middleware in vLLM's API server.

For every request: find its route (or refuse it), find out who calls, read and clean the body,
frame it, seal a mark for the engine half, and pass it on. The answer is held until the verdict
has arrived and is dropped, and the engine's request aborted, when that says block.

Installed by the endpoint plugin (`VLLM_PLUGINS=vauban`) or by
`--middleware vauban.hosts.vllm.middleware.GuardMiddleware`; installed twice, the inner one steps
aside.

Covers: HTTP. Does not cover: websockets (refused), gRPC (`--grpc`, a server of its own in vLLM
that has no middleware; the engine half still screens there).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vauban.access.scopes import allows
from vauban.access.standing import Standing
from vauban.errors import (
    Forbidden,
    MalformedRequest,
    Overloaded,
    RequestError,
    RequestTimeout,
    RequestTooLarge,
    RouteRefused,
)
from vauban.hosts.vllm.answers import Answer, error_answer
from vauban.hosts.vllm.approvals import ApprovalsApi
from vauban.hosts.vllm.exchange import REQUEST_ID_HEADER, Exchange
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.output_events import output_editor
from vauban.hosts.vllm.overview import OverviewApi
from vauban.hosts.vllm.rewrite import Editor, Rewriter
from vauban.hosts.vllm.routes import Kind, Route
from vauban.hosts.vllm.serving import client_address, send_answer
from vauban.hosts.vllm.tool_gate import Turn
from vauban.hosts.vllm.tool_stage import withholder
from vauban.hosts.vllm.users import UsersApi
from vauban.protocol.shapes import Shape
from vauban.text.sequel import leaks_jointly
from vauban.treatment import refuse, treated
from vauban.types import Mode, Principal

Message = MutableMapping[str, Any]

_SEEN = "vauban.guarded"
_STORED_PATH = "/v1/responses/{response_id}"
_OWN_PATHS = {
    Kind.USERS: "/vauban/users",
    Kind.APPROVALS: "/vauban/approvals",
    Kind.OVERVIEW: "/vauban/overview",
}
_STORED_PART = 3


class GuardMiddleware:
    """Wraps vLLM's application. Settings are read when the server starts up, from its state.

    :param app: the application inside.
    :param front: made by the endpoint plugin; without it (`--middleware`) the state of the
        application is used at the first request of the lifespan.
    """

    def __init__(self, app: ASGIApp, front: Front | None = None) -> None:
        self._app = app
        self._front = front or Front()
        self._own: dict[Kind, UsersApi | ApprovalsApi | OverviewApi] = {
            Kind.USERS: UsersApi(self._front),
            Kind.APPROVALS: ApprovalsApi(self._front),
            Kind.OVERVIEW: OverviewApi(self._front),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http" and not scope.get(_SEEN):
            scope[_SEEN] = True
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket" and not scope.get(_SEEN):
            await send({"type": "websocket.close", "code": 1008, "reason": "route refused"})
        else:
            await self._app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._front.open(scope["app"].state)  # raises: the server does not start
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._front.close()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._front.new_request_id()
        shape, path = Shape.CHAT, "unknown"  # not the client's path: that is text, too
        try:
            route, found = self._route(scope)
            if route is None:  # a CORS preflight of an open route
                await self._app(scope, receive, send)
                return
            shape, path = route.shape, _named(route, found)
            principal, standing = self._authorise(scope, route)
            if route.stored:
                stored_id = found.split("/")[_STORED_PART]
                self._front.response_ids.check(stored_id, principal, param="response_id")
            if route.kind is Kind.PASSED:
                if route.stored:
                    send = self._stored(send, principal, request_id)
                    scope = {
                        **scope,
                        "query_string": _from_the_start(scope.get("query_string", b"")),
                    }
                await self._app(scope, receive, send)
                return
            if route.kind.is_own:  # no slot: an operator gets through to a full server
                raw = await self._read_in_time(scope, receive)
                answer = await self._own[route.kind].answer(
                    scope["method"], found, scope.get("query_string", b""), raw, principal
                )
                await send_answer(send, answer, {REQUEST_ID_HEADER: request_id})
                return
            with self._slot():
                raw = await self._read_in_time(scope, receive)
                exchange = Exchange(self._front, route, path, principal, standing, request_id, raw)
                shape = exchange.shape
                await exchange.serve(self._app, scope, receive, send)
        except RequestError as error:
            self._front.record_refusal(error, path, request_id)
            answer = error_answer(error, shape, request_id)
            await send_answer(send, answer, {REQUEST_ID_HEADER: request_id})

    def _stored(self, send: Send, principal: Principal, request_id: str) -> Send:
        """The way out for a stored response, which is edited each time it is read."""
        front = self._front
        canary = front.owners.canary(principal, request_id)
        instruction = front.policy.sandwich.instruction
        rules = front.guard.screen_output(
            [instruction] if instruction else [], [canary] if canary else []
        )
        # Whoever reads it later is not there for an approval: what would hold it ends it.
        editors: list[Editor] = [output_editor(rules.with_actions(hold="stop"), Shape.RESPONSES)]
        logprobs = front.hardening.stored()
        if logprobs is not None:
            editors.insert(0, logprobs)

        def failed(error: RequestError) -> Answer:
            self._front.record_refusal(error, _STORED_PATH, request_id)
            return error_answer(error, Shape.RESPONSES, request_id)

        # Whoever reads it now may not be there for an answer; and what the model had read is not
        # known any more.
        turn = Turn(
            principal.id, request_id, _STORED_PATH, tainted=True, may_ask=False,
            leaks=partial(leaks_jointly, rules),
        )  # fmt: skip
        last = withholder(front.tool_gate, Shape.RESPONSES, turn)
        return Rewriter(send, editors, failed, last=last).send

    def _route(self, scope: Scope) -> tuple[Route | None, str]:
        path: str = scope["path"]
        root = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :] or "/"
        method = scope["method"]
        if method == "OPTIONS":
            headers = Headers(scope=scope)
            wanted = headers.get("access-control-request-method", "")
            if "origin" in headers and self._front.routes.find(wanted, path) is not None:
                return None, path
        route = self._front.routes.find(method, path)
        if route is None:
            raise RouteRefused("this route is not open on this server")
        return route, path

    def _authorise(self, scope: Scope, route: Route) -> tuple[Principal, Standing]:
        """Who calls and how they are treated, before anything of the body is read."""
        headers = Headers(scope=scope)
        front = self._front
        if route.group is None:
            return front.nobody, Standing(front.nobody.id)
        principal = front.identity.authenticate(
            authorization=headers.get("authorization"),
            api_key=headers.get("x-api-key"),
            client_host=client_address(scope, front.policy.identity.trusted_proxies),
        )
        standing = front.standing(principal, route)
        if front.policy.response.mode is Mode.ENFORCE:
            refuse(standing, time.time())
            principal = treated(principal, standing.level, front.policy.response)
        if not allows(principal.scopes, group=route.group):
            raise Forbidden(f"the credential lacks the scope {route.group}")
        front.identity.admit(principal)
        return principal, standing

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        """One of the requests that may be in flight."""
        front = self._front
        if front.in_flight >= front.policy.limits.max_in_flight:
            raise Overloaded("too many requests are being served; try again")
        front.in_flight += 1
        front.metrics.in_flight.inc()
        try:
            yield
        finally:
            front.in_flight -= 1
            front.metrics.in_flight.dec()

    async def _read_in_time(self, scope: Scope, receive: Receive) -> bytes:
        """A body that is sent byte by byte would keep others out: it holds one of the slots."""
        try:
            async with asyncio.timeout(self._front.policy.limits.body_timeout_ms / 1000):
                return await self._read(scope, receive)
        except TimeoutError:
            raise RequestTimeout("the body did not arrive in time") from None

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, refused as soon as it is known to be too large."""
        limit = self._front.policy.limits.max_body_bytes
        too_large = RequestTooLarge(f"the body is over {limit} bytes")
        headers = Headers(scope=scope)
        if any(found.lower() != "identity" for found in headers.getlist("content-encoding")):
            raise MalformedRequest("compressed bodies are not taken")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise MalformedRequest("the client left before the body was complete")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)


def _named(route: Route, found: str) -> str:
    """The path as it is counted and audited: without what a client chose in it."""
    if route.kind.is_own:
        return _OWN_PATHS[route.kind]
    return _STORED_PATH if route.stored else found


def _from_the_start(query: bytes) -> bytes:
    """A stored stream is read whole: from its middle, half a secret is no secret to the rules."""
    fields = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return urlencode([(k, v) for k, v in fields if k != "starting_after"]).encode()
