"""The console's routes: closed without the scope, bounded, and without texts and secrets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from test_tool_calls import CHAT, Site

from vauban.access.keyfile import add_key
from vauban.errors import StateUnavailable
from vauban.hosts.vllm.routes import _TABLE, Kind
from vauban.types import Evidence, Level, Principal, PrincipalKind, RateLimit

ROUTES = sorted(key for key, route in _TABLE.items() if route.kind is Kind.OVERVIEW)
GOOD = {"model": "standin", "messages": [{"role": "user", "content": "a private question"}]}
MakeServer = Callable[..., Any]


@pytest.fixture
def open_site(make_server: MakeServer, tmp_path: Path) -> Callable[..., Site]:
    def make(**sections: Any) -> Site:
        made = {
            name: add_key(
                tmp_path / "keys.json", name, (name,), created=datetime.now(UTC), expires=None,
                limit=RateLimit(),
            )
            for name in ("console", "admin")
        }  # fmt: skip
        site = Site(make_server, tmp_path, **sections)
        for name, (key, record) in made.items():
            site.headers[name] = {"authorization": f"Bearer {key.text}"}
            site.id[name] = f"key:{record.id}"
        return site

    return make


async def get(site: Site, path: str, *, by: str = "console", query: str = "") -> Any:
    inner = site.server.app

    async def with_query(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "query_string": query.encode()}, receive, send)

    site.server.app = with_query
    try:
        return await site.server.post(unquote(path), method="GET", headers=site.headers[by])
    finally:
        site.server.app = inner


async def test_every_route_takes_its_scope_and_no_other(open_site: Callable[..., Site]) -> None:
    site = open_site()
    assert len(ROUTES) == 6
    for method, path in ROUTES:
        named = path.replace("{principal_id:path}", site.id["agent"])
        wanted = "admin" if path.startswith("/vauban/queries") else "console"
        for by in ("agent", "approver", "console", "admin"):  # `*` and `approve` don't cover it
            status = (await get(site, named, by=by)).status
            assert status == (200 if by == wanted else 403), (path, by)
        assert (await site.server.post(named, method=method)).status == 401
        assert (await site.server.post(named, headers=site.headers[wanted])).status == 404


async def test_events_without_texts(open_site: Callable[..., Site]) -> None:
    site = open_site()
    await site.server.post(CHAT, GOOD, headers=site.headers["agent"])
    told = (await get(site, "/vauban/events", query="event=decision&limit=5")).json
    (event,) = told["events"]
    assert (event["principal"], event["route"]) == (site.id["agent"], CHAT)
    assert "excerpt" not in event
    assert "private" not in json.dumps(told)
    for query in ("event=nothing", "principal=key:x", "action=block", "event=%3Cb%3E"):
        assert (await get(site, "/vauban/events", query=query)).json["events"] == []


async def test_excerpts_where_the_operator_wants_them(open_site: Callable[..., Site]) -> None:
    site = open_site(console={"excerpt_chars": 8})
    await site.server.post(CHAT, GOOD, headers=site.headers["agent"])
    (event,) = (await get(site, "/vauban/events", query="event=decision")).json["events"]
    assert event["excerpt"] == {"text": "question", "of_chars": 18}
    assert "question" not in site.audit.read_text()  # never written


@pytest.mark.parametrize(
    ("path", "query"),
    [("/vauban/events", "limit=0"), ("/vauban/events", "limit=x"), ("/vauban/events", "x=1"),
     ("/vauban/events", "limit=1001"), ("/vauban/events", "principal=" + "x" * 201),
     ("/vauban/events", "&".join(f"a{n}=1" for n in range(9)))],
)  # fmt: skip
async def test_what_is_not_taken(open_site: Callable[..., Site], path: str, query: str) -> None:
    site = open_site()
    assert (await get(site, path, query=query)).status == 400


@pytest.mark.parametrize("user", ["", "x", "key:../me", "key:00", "anon:local/ban", "%2e%2e"])
async def test_users_that_are_none(open_site: Callable[..., Site], user: str) -> None:
    site = open_site()
    assert (await get(site, f"/vauban/queries/{user}", by="admin")).status == 404


async def test_the_policy_with_its_origins_and_no_secrets(
    open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAUBAN_LIMITS__MAX_IN_FLIGHT", "77")
    site = open_site(output={"canaries": ["CANARY0123456789"]})
    told = (await get(site, "/vauban/policy")).json
    fields = {row["path"]: row for row in told["fields"]}
    assert told["digest"] == site.server.front.policy.digest
    assert fields["limits.max_in_flight"]["value"] == "77"
    assert fields["limits.max_in_flight"]["origin"] == "environment"
    assert fields["injection.block_at"]["origin"] == "server flag"
    assert fields["console.excerpt_chars"]["origin"] == "default"
    assert fields["output.canaries"]["value"] == "1 set"
    assert "CANARY0123456789" not in json.dumps(told)


async def test_queries_are_told_and_forgotten(open_site: Callable[..., Site]) -> None:
    site = open_site()
    front, user = site.server.front, site.id["agent"]
    who = Principal(user, PrincipalKind.KEY)
    for score in (0.1, 0.2):
        front.learn(who, Evidence(score, Level.CLEAR, 1, at=(0.25, -0.5)))
    (row,) = (await get(site, "/vauban/queries", by="admin")).json["users"]
    assert (row["id"], row["queries"], row["score"]) == (user, 2, 0.2)
    told = (await get(site, f"/vauban/queries/{user}", by="admin")).json
    assert [(p["score"], p["x"], p["y"]) for p in told["points"]] == [
        (0.1, 0.25, -0.5), (0.2, 0.25, -0.5),
    ]  # fmt: skip
    assert len(told["cells"]) == 512
    assert told["levels"]["banned"] == front.policy.extraction.ban_at
    front.ledger.forget(user, by=site.id["admin"])
    assert (await get(site, f"/vauban/queries/{user}", by="admin")).json["points"] == []


async def test_status(open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = open_site()
    site.server.front.ledger.ban(site.id["agent"], by=site.id["admin"], reason="x")
    told = (await get(site, "/vauban/status")).json
    assert told["standing"]["levels"]["banned"] == 1
    assert told["standing"]["store"] == "memory"
    assert told["approvals"] == {"current": True, "waiting": 0}
    assert told["keys"] is True

    def dead(*_: Any) -> None:
        raise StateUnavailable("gone")

    monkeypatch.setattr(site.server.front.tool_gate.approvals._store, "update", dead)
    told = (await get(site, "/vauban/status")).json
    assert told["approvals"] == {"current": False, "waiting": None}


async def test_counting_all_users_does_not_keep_the_server_from_serving(
    open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = open_site()
    ledger = site.server.front.ledger
    count, threads = ledger._mirror.all, set[str]()

    def counting() -> Any:
        threads.add(threading.current_thread().name)
        return count()

    monkeypatch.setattr(ledger._mirror, "all", counting)
    assert (await get(site, "/vauban/status")).status == 200
    assert threads
    assert threading.main_thread().name not in threads
