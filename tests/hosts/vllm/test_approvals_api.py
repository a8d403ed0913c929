"""The approvers' routes: closed to everybody without the scope, and safe against the caller."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tool_calls import CHAT, Site, answer, request

from vauban.errors import StateUnavailable
from vauban.hosts.vllm.routes import _TABLE, Kind

ROUTE = "/vauban/approvals"
GIVEN = {"reason": "known recipient"}


@pytest.fixture
async def site(make_server: Callable[..., Any], tmp_path: Path) -> Site:
    return Site(make_server, tmp_path)


async def admin(
    site: Site, method: str, path: str, body: Any = None, *, by: str = "approver", query: str = ""
) -> Any:
    inner = site.server.app

    async def with_query(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "query_string": query.encode()}, receive, send)

    site.server.app = with_query
    try:
        return await site.server.post(path, body, method=method, headers=site.headers[by])
    finally:
        site.server.app = inner


async def test_every_route_takes_the_scope_and_no_other(site: Site) -> None:
    routes = [key for key, route in _TABLE.items() if route.kind is Kind.APPROVALS]
    assert len(routes) == 5
    for method, path in routes:
        named = path.replace("{approval_id}", "apr_" + "x" * 24)
        body = GIVEN if method == "POST" else None
        for by in ("agent", "other"):  # `*` does not cover it
            assert (await admin(site, method, named, body, by=by)).status == 403
        response = await site.server.post(named, body, method=method)
        assert response.status == 401
        assert (await admin(site, method, named, body)).status in (200, 404)


async def test_seen_and_approved(site: Site) -> None:
    approval_id = await site.held(CHAT)
    (listed,) = (await admin(site, "GET", ROUTE)).json["approvals"]
    shown = (await admin(site, "GET", f"{ROUTE}/{approval_id}")).json
    assert listed == shown
    assert shown["id"] == approval_id
    assert (shown["state"], shown["caller"]) == ("pending", site.id["agent"])
    (call,) = shown["calls"]
    assert (call["tool"], call["why"]) == ("send_email", "destructive")
    assert json.loads(call["arguments"]) == {"to": "boss@example.org", "text": "hi"}
    decided = (await admin(site, "POST", f"{ROUTE}/{approval_id}/approve", GIVEN)).json
    assert (decided["state"], decided["by"]) == ("approved", site.id["approver"])
    assert decided["reason"] == "known recipient"
    again = await admin(site, "POST", f"{ROUTE}/{approval_id}/approve", GIVEN)
    assert again.json["error"]["code"] == "approval_refused"
    taken_back = await admin(site, "POST", f"{ROUTE}/{approval_id}/deny", GIVEN)
    assert taken_back.json["state"] == "denied"
    for query, number in (("state=pending", 0), ("state=denied", 1), ("limit=1", 1)):
        rows = (await admin(site, "GET", ROUTE, query=query)).json["approvals"]
        assert len(rows) == number
    assert "known recipient" not in site.audit.read_text()


async def test_who_asks_does_not_approve_even_with_the_scope(site: Site) -> None:
    approval_id = await site.held(CHAT, by="both")
    path = f"{ROUTE}/{approval_id}/approve"
    assert (await admin(site, "POST", path, GIVEN, by="both")).status == 403
    assert (await admin(site, "POST", path, GIVEN, by="agent")).status == 403
    assert (await admin(site, "POST", path, GIVEN)).status == 200


async def test_a_caller_without_a_credential_approves_nothing(make_server: Any) -> None:
    """An address is no credential, whatever scopes the policy gives it."""
    server = make_server(identity={"anonymous_scopes": ["*", "approve"]})
    server.engine.answered = json.dumps(answer(CHAT)).encode()
    held = (await server.post(CHAT, request(CHAT))).json
    approval_id = held["choices"][0]["message"]["approval"]["id"]
    response = await server.post(f"{ROUTE}/{approval_id}/approve", GIVEN)
    assert response.json["error"]["code"] == "approval_refused"


@pytest.mark.parametrize(
    "body",
    [None, {}, {"reason": ""}, {"reason": 7}, {"reason": "a\nb"}, {"reason": "x" * 501},
     {"reason": "x", "approve": True}, []],
)  # fmt: skip
async def test_a_decision_has_a_reason(site: Site, body: Any) -> None:
    approval_id = await site.held(CHAT)
    assert (await admin(site, "POST", f"{ROUTE}/{approval_id}/approve", body)).status == 400
    assert (await admin(site, "GET", f"{ROUTE}/{approval_id}")).json["state"] == "pending"


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [(ROUTE, "state=open", 400), (ROUTE, "limit=0", 400), (ROUTE, "limit=x", 400),
     (ROUTE, "x=1", 400), (ROUTE, "a=1&b=2&c=3", 400), (f"{ROUTE}/apr_x", "", 404),
     (f"{ROUTE}/approvals", "", 404), (f"{ROUTE}/%2e%2e", "", 404)],
)  # fmt: skip
async def test_what_is_not_taken(site: Site, path: str, query: str, status: int) -> None:
    assert (await admin(site, "GET", path, query=query)).status == status


async def test_a_dead_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    approval_id = await site.held(CHAT)

    def dead(*_: Any) -> None:
        raise StateUnavailable("gone")

    monkeypatch.setattr(site.approvals._store, "update", dead)
    for method, path, body in (
        ("GET", ROUTE, None), ("GET", f"{ROUTE}/{approval_id}", None),
        ("POST", f"{ROUTE}/{approval_id}/approve", GIVEN),
    ):  # fmt: skip
        response = await admin(site, method, path, body)
        assert response.json["error"]["code"] == "approvals_unavailable"


async def test_the_key_of_receipts(site: Site) -> None:
    key = (await admin(site, "GET", "/vauban/receipt-key")).json["key"]
    assert key == site.server.front.tool_gate.receipts.public_key()
    assert "d" not in key
