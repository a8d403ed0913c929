"""Which routes of vLLM are open, and how each is served. A route not in here is refused.

The table is compared with what a live server lists by a test, so that a route that a new vLLM
version brings is noticed and decided on, not served by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from starlette.routing import compile_path

from vauban.access.scopes import ADMIN, APPROVE, CONSOLE
from vauban.policy import RoutesPolicy
from vauban.protocol.shapes import Shape

STANDING_HEADER: Final = "x-vauban-standing"
PRIORITY_HEADER: Final = "x-vllm-priority"
"""vLLM reads it before the field `priority` of the body; lower is served earlier."""


class Kind(StrEnum):
    """How a route is served."""

    GUARDED = "guarded"
    """Its text reaches a model: read, cleaned, screened."""
    BOUNDED = "bounded"
    """Takes text but runs no model (token counts): identity and size limits only."""
    PASSED = "passed"
    """Takes no text: identity only, or nothing at all."""
    USERS = "users"
    """Answered by the guard itself: how users are treated."""
    APPROVALS = "approvals"
    """Answered by the guard itself: tool calls that wait for a person."""
    OVERVIEW = "overview"
    """Answered by the guard itself: what it does, for the console."""

    @property
    def is_own(self) -> bool:
        """Answered by the guard itself."""
        return self in (Kind.USERS, Kind.APPROVALS, Kind.OVERVIEW)


@dataclass(frozen=True, slots=True)
class Route:
    """`group`: the scope that opens it; None = open to everybody. `generates`: it runs the engine
    with logits, so the engine half can screen; otherwise the front does. `stored`: its path names
    a stored response, which is its owner's alone."""

    kind: Kind
    group: str | None
    shape: Shape = Shape.CHAT
    generates: bool = False
    stored: bool = False


def _guarded(group: str, shape: Shape, *, generates: bool = True) -> Route:
    return Route(Kind.GUARDED, group, shape, generates)


_POOLING = _guarded("pooling", Shape.POOLING, generates=False)
_EMBEDDINGS = _guarded("embeddings", Shape.POOLING, generates=False)
_COUNTS = Route(Kind.BOUNDED, "tokenize")
_STATUS = Route(Kind.PASSED, "status")
_OPEN = Route(Kind.PASSED, None)
_STORED = Route(Kind.PASSED, "responses", Shape.RESPONSES, stored=True)

_USERS = Route(Kind.USERS, ADMIN)
_APPROVALS = Route(Kind.APPROVALS, APPROVE)
_OVERVIEW = Route(Kind.OVERVIEW, CONSOLE)
_QUERIES = Route(Kind.OVERVIEW, ADMIN)

_TABLE: dict[tuple[str, str], Route] = {
    ("POST", "/v1/chat/completions"): _guarded("chat", Shape.CHAT),
    ("POST", "/v1/chat/completions/batch"): _guarded("chat", Shape.CHAT),
    ("POST", "/v1/completions"): _guarded("completions", Shape.COMPLETION),
    ("POST", "/v1/responses"): _guarded("responses", Shape.RESPONSES),
    ("POST", "/v1/messages"): _guarded("messages", Shape.ANTHROPIC),
    ("POST", "/inference/v1/generate"): _guarded("generate", Shape.TOKENS),
    ("POST", "/invocations"): _guarded("generate", Shape.ANY),
    ("POST", "/v1/embeddings"): _EMBEDDINGS,
    ("POST", "/v2/embed"): _EMBEDDINGS,
    ("POST", "/pooling"): _POOLING,
    ("POST", "/classify"): _POOLING,
    ("POST", "/score"): _POOLING,
    ("POST", "/v1/score"): _POOLING,
    ("POST", "/rerank"): _POOLING,
    ("POST", "/v1/rerank"): _POOLING,
    ("POST", "/v2/rerank"): _POOLING,
    ("POST", "/tokenize"): _COUNTS,
    ("POST", "/detokenize"): _COUNTS,
    ("POST", "/v1/messages/count_tokens"): _COUNTS,
    ("POST", "/v1/chat/completions/render"): _COUNTS,
    ("POST", "/v1/completions/render"): _COUNTS,
    ("POST", "/v1/responses/render"): _COUNTS,
    ("POST", "/v1/messages/render"): _COUNTS,
    ("GET", "/v1/responses/{response_id}"): _STORED,
    ("POST", "/v1/responses/{response_id}/cancel"): _STORED,
    ("GET", "/vauban/users"): _USERS,
    ("GET", "/vauban/users/{principal_id:path}"): _USERS,
    ("DELETE", "/vauban/users/{principal_id:path}"): _USERS,
    ("POST", "/vauban/users/{principal_id:path}/ban"): _USERS,
    ("POST", "/vauban/users/{principal_id:path}/unban"): _USERS,
    ("POST", "/vauban/users/{principal_id:path}/level"): _USERS,
    ("GET", "/vauban/approvals"): _APPROVALS,
    ("GET", "/vauban/approvals/{approval_id}"): _APPROVALS,
    ("POST", "/vauban/approvals/{approval_id}/approve"): _APPROVALS,
    ("POST", "/vauban/approvals/{approval_id}/deny"): _APPROVALS,
    ("GET", "/vauban/receipt-key"): _APPROVALS,
    ("GET", "/vauban/me"): _OVERVIEW,
    ("GET", "/vauban/events"): _OVERVIEW,
    ("GET", "/vauban/policy"): _OVERVIEW,
    ("GET", "/vauban/status"): _OVERVIEW,
    ("GET", "/vauban/queries"): _QUERIES,
    ("GET", "/vauban/queries/{principal_id:path}"): _QUERIES,
    ("GET", "/v1/models"): Route(Kind.PASSED, "models"),
    ("GET", "/health"): _OPEN,
    ("GET", "/ping"): _OPEN,
    ("POST", "/ping"): _OPEN,
    ("GET", "/version"): _STATUS,
    ("GET", "/load"): _STATUS,
    ("GET", "/metrics"): Route(Kind.PASSED, "metrics"),
}

_DOCS = ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")

REFUSED: frozenset[tuple[str, str]] = frozenset(
    {
        # Change or expose the server itself.
        ("POST", "/scale_elastic_ep"),
        ("POST", "/is_scaling_elastic_ep"),
        ("POST", "/inference/v1/abort_requests"),
        ("GET", "/kv_event_sources"),
        # Turn token ids into an answer, tool calls included, that nothing has screened.
        ("POST", "/v1/chat/completions/derender"),
        ("POST", "/v1/completions/derender"),
        # Answer from the model through sampling parameters that no mark can travel in.
        ("POST", "/v1/systemone"),
        ("POST", "/generative_scoring"),
        ("POST", "/cohere/v2/chat"),
    }
)
"""Routes that vLLM has and vauban refuses on purpose (a route in no table is refused as well)."""


class RouteTable:
    """Finds the route of a request; None = refused."""

    def __init__(self, policy: RoutesPolicy) -> None:
        self._exact = {key: route for key, route in _TABLE.items() if "{" not in key[1]}
        if policy.metrics_without_key:
            self._exact["GET", "/metrics"] = _OPEN
        if policy.docs:
            self._exact |= {("GET", path): _STATUS for path in _DOCS}
        self._patterns = [
            (method, compile_path(path)[0], route)
            for (method, path), route in _TABLE.items()
            if "{" in path
        ]

    def find(self, method: str, path: str) -> Route | None:
        """:param path: as the server decoded it, without the root path."""
        method = "GET" if method == "HEAD" else method
        route = self._exact.get((method, path))
        if route is not None:
            return route
        for known, pattern, candidate in self._patterns:
            if known == method and pattern.fullmatch(path):
                return candidate
        return None


def known_routes() -> frozenset[tuple[str, str]]:
    """Every (method, path template) that vauban has decided on, open or refused."""
    docs = {("GET", path) for path in _DOCS}
    return frozenset(_TABLE) | REFUSED | docs


def shape_of(route: Route, data: Mapping[str, Any]) -> Shape:
    """The protocol of a request; for /invocations by what the body has, as vLLM decides it."""
    if route.shape is not Shape.ANY:
        return route.shape
    if "messages" in data:
        return Shape.CHAT
    return Shape.COMPLETION if "prompt" in data else Shape.POOLING
