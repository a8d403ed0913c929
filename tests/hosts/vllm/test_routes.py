"""The route table: refused unless opened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.hosts.vllm.routes import _TABLE, REFUSED, Kind, RouteTable, known_routes
from vauban.policy import RoutesPolicy

TABLE = RouteTable(RoutesPolicy())


@given(path=st.text(max_size=30), method=st.sampled_from(["GET", "POST", "PUT", "HEAD"]))
def test_what_is_not_in_the_table_is_refused(path: str, method: str) -> None:
    if ("GET" if method == "HEAD" else method, path) not in _TABLE:
        assert TABLE.find(method, path) is None or path.startswith("/v1/responses/")


@pytest.mark.parametrize(("method", "path"), sorted(REFUSED))
def test_refused_on_purpose(method: str, path: str) -> None:
    assert TABLE.find(method, path) is None


@pytest.mark.parametrize("tail", ["", "/", "abc/def", "abc/cancel/x", "/cancel"])
def test_patterns_take_one_part_and_no_less(tail: str) -> None:
    assert TABLE.find("GET", f"/v1/responses/{tail}") is None


def test_patterns() -> None:
    assert TABLE.find("GET", "/v1/responses/resp_1") is not None
    assert TABLE.find("POST", "/v1/responses/resp_1/cancel") is not None
    assert TABLE.find("POST", "/v1/responses/resp_1") is None
    assert TABLE.find("HEAD", "/health") is TABLE.find("GET", "/health")


def test_what_takes_text_is_guarded_or_bounded() -> None:
    passed = {path for (_, path), route in _TABLE.items() if route.kind is Kind.PASSED}
    assert passed == {
        "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/v1/models",
        "/health", "/ping", "/version", "/load", "/metrics",
    }  # fmt: skip


def test_switches() -> None:
    assert RouteTable(RoutesPolicy(docs=True)).find("GET", "/openapi.json") is not None
    metrics = RouteTable(RoutesPolicy(metrics_without_key=True)).find("GET", "/metrics")
    assert metrics is not None
    assert metrics.group is None
    closed = TABLE.find("GET", "/metrics")
    assert closed is not None
    assert closed.group == "metrics"


def test_known_routes_hold_both_sides() -> None:
    assert frozenset(_TABLE) | REFUSED <= known_routes()
