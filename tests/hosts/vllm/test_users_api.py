"""Banned, held, slowed, degraded: what a caller gets at each level, and an operator's routes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from redis_server import RedisServer
from vauban.access.keyfile import add_key
from vauban.errors import ConfigError, StateUnavailable
from vauban.hosts.vllm.exchange import Exchange
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.routes import _TABLE, Kind
from vauban.protocol.shapes import Shape
from vauban.types import Evidence, Level, Principal, PrincipalKind, RateLimit

CHAT = "/v1/chat/completions"
GOOD = {"model": "standin", "messages": [{"role": "user", "content": "a plain question"}]}
GUARDED = sorted(key for key, route in _TABLE.items() if route.kind is Kind.GUARDED)
USERS = "/vauban/users"
MakeServer = Callable[..., Any]


class Site:
    """A server with keys for a user, another user and an operator."""

    def __init__(self, make_server: MakeServer, path: Path, **sections: Any) -> None:
        self.headers: dict[str, dict[str, str]] = {}
        self.id: dict[str, str] = {}
        for name, scopes in (
            ("user", ("*",)), ("other", ("*",)), ("operator", ("admin", "chat")),
            ("second", ("admin",)),
        ):  # fmt: skip
            key, record = add_key(
                path / "keys.json", name, scopes, created=datetime.now(UTC), expires=None,
                limit=RateLimit(),
            )  # fmt: skip
            self.headers[name] = {"authorization": f"Bearer {key.text}"}
            self.id[name] = f"key:{record.id}"
        self.audit = path / "audit.log"
        self.server = make_server(identity={"keys_file": str(path / "keys.json")}, **sections)
        self.ledger = self.server.front.ledger

    async def chat(self, name: str, path: str = CHAT, body: Any = GOOD, **headers: str) -> Any:
        return await self.server.post(path, body, headers={**self.headers[name], **headers})

    async def admin(
        self, method: str, path: str, body: Any = None, *, by: str = "operator", query: str = "",
        raw: bytes | None = None,
    ) -> Any:  # fmt: skip
        """As uvicorn gives it: the path decoded, the query beside it."""
        server = self.server
        inner = server.app

        async def with_query(scope: Any, receive: Any, send: Any) -> None:
            await inner({**scope, "query_string": query.encode()}, receive, send)

        server.app = with_query
        try:
            return await server.post(
                unquote(path), body, method=method, headers=self.headers[by], raw=raw
            )
        finally:
            server.app = inner

    def put(self, name: str, level: Level, seconds: float | None = None) -> None:
        self.ledger.set_level(
            self.id[name], level, by="key:000000000000", reason="a secret remark", seconds=seconds
        )

    def find(self, name: str, level: Level) -> None:
        who = Principal(self.id[name], PrincipalKind.KEY)
        self.ledger.observe(who, Evidence(0.9, level, 100, (("novelty", 0.5),), "c1"))
        self.ledger.refresh()

    def events(self, kind: str = "standing") -> list[dict[str, Any]]:
        rows = (json.loads(line) for line in self.audit.read_text().splitlines())
        return [row for row in rows if row["event"] == kind]


@pytest.fixture
async def site(make_server: MakeServer, tmp_path: Path) -> Site:
    return Site(make_server, tmp_path)


# -- what a caller gets -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_a_banned_key_is_refused_everywhere_before_its_body(
    site: Site, method: str, path: str
) -> None:
    site.put("user", Level.BANNED, seconds=600)
    response = await site.server.post(path, method=method, headers=site.headers["user"], then=[])
    assert response.status == 403
    assert response.json["error"]["code"] == "banned"
    assert 590 <= int(response.headers["retry-after"]) <= 600
    assert "until 20" in response.json["error"]["message"]
    assert b"remark" not in response.body
    assert (response.json.get("type") == "error") is (_TABLE[method, path].shape is Shape.ANTHROPIC)
    assert site.server.engine.scopes == []


async def test_a_ban_is_one_keys_alone_and_ends(site: Site) -> None:
    site.put("user", Level.BANNED)
    assert (await site.chat("user")).status == 403
    assert (await site.chat("other")).status == 200
    for path in ("/v1/models", "/metrics", "/version"):
        assert (await site.server.post(path, method="GET", headers=site.headers["user"])
                ).status == 403  # fmt: skip
    assert (await site.server.post("/health", method="GET")).status == 200
    site.put("user", Level.CLEAR)
    assert (await site.chat("user")).status == 200


async def test_who_is_held_is_told_that_somebody_decides(site: Site) -> None:
    site.find("user", Level.HELD)
    response = await site.chat("user")
    assert response.status == 403
    assert response.json["error"]["code"] == "held_for_review"
    assert "retry-after" not in response.headers


async def test_a_slowed_key_has_a_tenth(make_server: MakeServer, tmp_path: Path) -> None:
    site = Site(make_server, tmp_path, response={"slow_requests_per_min": 2})
    site.put("user", Level.SLOWED)
    assert [(await site.chat("user")).status for _ in range(3)] == [200, 200, 429]
    assert [(await site.chat("other")).status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("level", [Level.CLEAR, Level.FLAGGED])
async def test_below_slowed_nothing_changes(site: Site, level: Level) -> None:
    site.server.front.priority_scheduling = True
    site.put("user", level)
    response = await site.chat("user")
    assert response.status == 200
    assert "x-vauban-standing" not in response.headers
    assert "priority" not in site.server.engine.bodies[0]


@pytest.mark.parametrize("level", [Level.SLOWED, Level.DEGRADED])
async def test_a_slowed_key_waits_for_others(site: Site, level: Level) -> None:
    site.server.front.priority_scheduling = True
    site.put("user", level)
    assert (await site.chat("user", body={**GOOD, "priority": 7})).status == 200
    assert (await site.chat("user", body={**GOOD, "priority": 700})).status == 200
    anthropic = {**GOOD, "max_tokens": 4}
    assert (await site.chat("user", "/v1/messages", anthropic)).status == 200
    bodies, scopes = site.server.engine.bodies, site.server.engine.scopes
    assert [body.get("priority") for body in bodies] == [100, 700, None]
    sent = [dict(scope["headers"]).get(b"x-vllm-priority") for scope in scopes]
    assert sent == [b"100", b"700", b"100"]


async def test_without_priority_scheduling_vllm_would_refuse_the_field(site: Site) -> None:
    site.put("user", Level.SLOWED)
    assert (await site.chat("user")).status == 200
    assert "priority" not in site.server.engine.bodies[0]


@pytest.mark.parametrize("scheduling", [False, True])
async def test_nobody_jumps_the_queue(site: Site, scheduling: bool) -> None:
    site.server.front.priority_scheduling = scheduling
    for wrong, status in ((-1, 403), ("-1", 400), (-1.0, 400), (True, 400)):
        response = await site.chat("user", body={**GOOD, "priority": wrong})
        assert response.status == status, wrong
    assert site.server.engine.bodies == []
    jumping = {"x-vllm-priority": "-5"}
    assert (await site.chat("user", body={**GOOD, "priority": 3}, **jumping)).status == 200
    assert (await site.chat("operator", body={**GOOD, "priority": -5})).status == 200
    assert [body["priority"] for body in site.server.engine.bodies] == [3, -5]
    for scope in site.server.engine.scopes:
        assert b"x-vllm-priority" not in dict(scope["headers"])


async def test_a_degraded_key_is_served_degraded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    serve = Exchange.serve

    async def watch(self: Exchange, *arguments: Any) -> None:
        seen.append(self._degraded)
        await serve(self, *arguments)

    monkeypatch.setattr(Exchange, "serve", watch)
    for level in (Level.CLEAR, Level.SLOWED, Level.DEGRADED):
        site.put("user", level)
        assert (await site.chat("user")).status == 200
    assert seen == [False, False, True]


async def test_monitor_only_tells(make_server: MakeServer, tmp_path: Path) -> None:
    site = Site(make_server, tmp_path, response={"mode": "monitor", "slow_requests_per_min": 1})
    site.server.front.priority_scheduling = True
    site.put("user", Level.BANNED)
    for _ in range(3):
        response = await site.chat("user")
        assert response.status == 200
        assert response.headers["x-vauban-standing"] == "banned"
    assert "priority" not in site.server.engine.bodies[0]
    assert site.events("decision")[0]["standing"] == "banned"
    assert (await site.chat("other")).headers["x-vauban-standing"] == "clear"


async def test_off_does_nothing(make_server: MakeServer, tmp_path: Path) -> None:
    site = Site(make_server, tmp_path, response={"mode": "off"})
    site.put("user", Level.BANNED)
    assert (await site.chat("user")).status == 200


# -- a lost store -------------------------------------------------------------------------------


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[[Site], None]:
    def lost(site: Site) -> None:
        def standing(_: str) -> None:
            raise StateUnavailable("the store is lost")

        monkeypatch.setattr(site.ledger, "standing", standing)

    return lost


@pytest.mark.parametrize(
    ("on_failure", "status", "degraded"),
    [("block", 503, None), ("degrade", 200, True), ("allow", 200, False)],
)
async def test_a_lost_store_is_answered_as_policy_says(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Site], None], on_failure: str, status: int, degraded: bool | None,
) -> None:  # fmt: skip
    site = Site(make_server, tmp_path, state={"on_failure": on_failure})
    site.put("user", Level.BANNED)
    lose(site)
    seen: list[bool] = []
    serve = Exchange.serve

    async def watch(self: Exchange, *arguments: Any) -> None:
        seen.append(self._degraded)
        await serve(self, *arguments)

    monkeypatch.setattr(Exchange, "serve", watch)
    response = await site.chat("other")
    assert response.status == status
    if status == 503:
        assert response.json["error"]["code"] == "state_unavailable"
        assert response.headers["retry-after"]
    assert seen == ([] if degraded is None else [degraded])
    banned = await site.chat("user")
    assert banned.status == (503 if status == 503 else 403)
    # What shows the server's health, and the operator's routes, need no store.
    response = await site.server.post("/metrics", method="GET", headers=site.headers["other"])
    assert response.status == 200
    assert (await site.admin("GET", USERS)).status == 200


async def test_monitor_refuses_nobody_for_a_lost_store(
    make_server: MakeServer, tmp_path: Path, lose: Callable[[Site], None]
) -> None:
    site = Site(make_server, tmp_path, response={"mode": "monitor"})
    lose(site)
    assert (await site.chat("user")).status == 200


async def test_counting_tokens_has_no_priority(site: Site) -> None:
    site.server.front.priority_scheduling = True
    site.put("user", Level.SLOWED)
    assert (await site.chat("user", "/tokenize", {"prompt": "x"})).status == 200
    assert "priority" not in site.server.engine.bodies[0]


# -- the operator's routes ----------------------------------------------------------------------


async def test_only_the_scope_admin_opens_them(site: Site) -> None:
    for method, template in _TABLE:
        if _TABLE[method, template].kind is not Kind.USERS:
            continue
        path = template.replace("{principal_id:path}", site.id["other"])
        assert (await site.admin(method, path, {"reason": "r"}, by="user")).status == 403
        unknown = await site.server.post(path, method=method)
        assert unknown.status == 401
    assert site.ledger.users() == []


async def test_without_keys_nobody_is_an_operator(server: Any) -> None:
    assert (await server.post(USERS, method="GET")).status == 403


async def test_ban_and_unban(site: Site) -> None:
    user = f"{USERS}/{site.id['user']}"
    answer = await site.admin("POST", f"{user}/ban", {"reason": "scraping", "seconds": 60})
    assert answer.status == 200
    assert answer.json["level"] == "banned"
    assert answer.json["by"] == site.id["operator"]
    assert answer.json["reason"] == "scraping"
    assert (await site.chat("user")).status == 403
    assert (await site.admin("GET", user)).json["decided"]["level"] == "banned"
    listed = (await site.admin("GET", USERS, query="level=banned")).json
    assert [row["id"] for row in listed["users"]] == [site.id["user"]]
    assert (await site.admin("POST", f"{user}/unban", {"reason": "a mistake"})).status == 200
    assert (await site.chat("user")).status == 200
    assert (await site.admin("GET", USERS)).json == {"users": [], "next": None, "current": True}


async def test_a_level_and_what_it_is_made_of(site: Site) -> None:
    site.find("user", Level.DEGRADED)
    user = f"{USERS}/{site.id['user']}"
    shown = (await site.admin("GET", user)).json
    assert (shown["level"], shown["by"]) == ("degraded", "detector")
    assert shown["evidence"] == {
        "score": 0.9, "level": "degraded", "queries": 100, "signals": {"novelty": 0.5},
        "campaign": "c1", "proposed": "",
    }  # fmt: skip
    body = {"level": "held", "reason": "to be called"}
    assert (await site.admin("POST", f"{user}/level", body)).json["level"] == "held"
    shown = (await site.admin("GET", user)).json
    assert (shown["found"]["level"], shown["decided"]["level"]) == ("degraded", "held")


async def test_forget(site: Site) -> None:
    site.find("user", Level.DEGRADED)
    site.find("other", Level.BANNED)
    gone = await site.admin("DELETE", f"{USERS}/{site.id['user']}")
    assert (gone.json["level"], gone.json["evidence"]) == ("clear", None)
    kept = await site.admin("DELETE", f"{USERS}/{site.id['other']}")
    assert (kept.json["level"], kept.json["evidence"], kept.json["found"]) == ("banned", None, None)
    assert (await site.chat("other")).status == 403


@pytest.mark.parametrize("name", ["team/bob@example.test", "team/ban", "level/level"])
async def test_a_user_whom_tritons_gateway_names_can_be_banned(site: Site, name: str) -> None:
    """Both hosts may share a store; Triton itself has no such routes."""
    at = f"{USERS}/gateway:{name}"
    assert (await site.admin("POST", f"{at}/ban", {"reason": "x"})).json["level"] == "banned"
    assert (await site.admin("POST", f"{at}/unban", {"reason": "x"})).json["level"] == "clear"
    for method in ("GET", "DELETE"):
        assert (await site.admin(method, at)).json["id"] == f"gateway:{name}"


async def test_ids_with_slashes(site: Site) -> None:
    who = "anon:2001:db8::/64"
    for escaped in (who, who.replace("/", "%2F")):
        answer = await site.admin("POST", f"{USERS}/{escaped}/ban", {"reason": "r"})
        assert answer.json["id"] == who
    assert (await site.admin("GET", f"{USERS}/{who}")).json["level"] == "banned"
    assert (await site.admin("DELETE", f"{USERS}/{who}")).json["id"] == who


@pytest.mark.parametrize(
    "name", ["key:short", "key:ABCDEFGHIJKL", "nobody", "x", "key:abcdefghijkl ", "jwt:0", "a/ban",
             "key:abcdefghijkl\n", "key:" + "a" * 5000, "<script>", "anon:::1/65", "../users"],
)  # fmt: skip
async def test_a_misspelt_id_is_not_banned_with_success(site: Site, name: str) -> None:
    answer = await site.admin("POST", f"{USERS}/{name}/ban", {"reason": "r"})
    assert answer.status == 404
    assert name.encode() not in answer.body or len(name) < 5
    assert site.ledger.users() == []


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_no_id_is_nobody(site: Site, method: str) -> None:
    assert (await site.admin(method, f"{USERS}/")).status == 404


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"reason": ""}', b'{"reason": 5}',
        b'{"reason": "r", "seconds": 0}', b'{"reason": "r", "seconds": "60"}',
        b'{"reason": "r", "seconds": 1e99}', b'{"reason": "r", "forever": true}',
        b'{"reason": "\\u001b[31m"}', b'{"reason": "' + b"r" * 501 + b'"}', b"\xff" * 9,
        b"[" * 100_000,
    ],
)  # fmt: skip
async def test_a_body_that_is_none(site: Site, raw: bytes) -> None:
    answer = await site.admin("POST", f"{USERS}/{site.id['user']}/ban", raw=raw)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "malformed_request"
    assert site.ledger.users() == []


async def test_a_body_that_is_too_large(site: Site) -> None:
    answer = await site.admin("POST", f"{USERS}/{site.id['user']}/ban", raw=b" " * 10_000_000)
    assert answer.status == 413


@pytest.mark.parametrize(
    "query", ["level=worst", "limit=0", "limit=-1", "limit=1001", "limit=9" + "9" * 5000, "limit=x",
              "limit=²", "page=2", "a=1&b=2&c=3&d=4"],
)  # fmt: skip
async def test_a_query_that_is_none(site: Site, query: str) -> None:
    assert (await site.admin("GET", USERS, query=query)).status == 400


async def test_pages(site: Site) -> None:
    names = [f"key:{n:012}" for n in range(7)]
    for name in names:
        site.ledger.ban(name, by="key:op", reason="r")
    found: list[str] = []
    after = ""
    while after is not None:
        page = (await site.admin("GET", USERS, query=f"limit=3&after={after}")).json
        assert len(page["users"]) <= 3
        found += [row["id"] for row in page["users"]]
        after = page["next"]
    assert found == names


async def test_the_accounts_of_a_campaign(site: Site) -> None:
    site.find("user", Level.FLAGGED)
    site.put("other", Level.BANNED)
    listed = (await site.admin("GET", USERS, query="campaign=c1")).json["users"]
    assert [row["id"] for row in listed] == [site.id["user"]]
    assert (await site.admin("GET", USERS, query="campaign=c2")).json["users"] == []
    assert len((await site.admin("GET", USERS)).json["users"]) == 2


async def test_a_proposed_service_is_shown_and_audited(site: Site) -> None:
    site.find("user", Level.FLAGGED)
    who = Principal(site.id["user"], PrincipalKind.KEY)
    site.ledger.observe(who, Evidence(0.9, Level.FLAGGED, 164, (), "c1", proposed="service"))
    site.ledger.refresh()
    shown = (await site.admin("GET", f"{USERS}/{site.id['user']}")).json
    assert (shown["level"], shown["evidence"]["proposed"]) == ("flagged", "service")
    first, second = site.events()
    assert (first["action"], first["proposed"]) == ("observe", "")
    assert (second["action"], second["proposed"]) == ("propose", "service")
    assert second["from"] == second["to"] == "flagged"
    metrics = site.server.front.metrics
    assert metrics.proposed._value.get() == 1
    assert metrics.transitions.labels("flagged", "flagged", "detector")._value.get() == 0


async def test_an_operator_can_not_lock_itself_out(site: Site) -> None:
    own = f"{USERS}/{site.id['operator']}"
    assert (await site.admin("POST", f"{own}/ban", {"reason": "r"})).status == 400
    body = {"level": "held", "reason": "r"}
    assert (await site.admin("POST", f"{own}/level", body)).status == 400
    site.find("operator", Level.BANNED)  # nor can a detector
    assert (await site.admin("DELETE", own)).json["level"] == "banned"
    assert (await site.chat("operator")).status == 403
    assert (await site.admin("GET", USERS)).status == 200
    assert (await site.admin("POST", f"{own}/unban", {"reason": "r"})).status == 200
    assert (await site.chat("operator")).status == 200


async def test_another_operator_can(site: Site) -> None:
    answer = await site.admin(
        "POST", f"{USERS}/{site.id['operator']}/ban", {"reason": "r"}, by="second"
    )
    assert answer.status == 200
    for method, path in (("GET", USERS), ("POST", f"{USERS}/{site.id['operator']}/unban")):
        assert (await site.admin(method, path, {"reason": "r"})).status == 403


async def test_a_store_that_is_lost_while_it_is_changed(
    make_server: MakeServer, tmp_path: Path
) -> None:
    redis = RedisServer()
    try:
        site = Site(make_server, tmp_path, state={"store": redis.url, "timeout_ms": 100,
                                                  "stale_after_ms": 100})  # fmt: skip
        user = f"{USERS}/{site.id['user']}"
        assert (await site.admin("POST", f"{user}/ban", {"reason": "r"})).status == 200
        redis.kill()
        answer = await site.admin("POST", f"{user}/unban", {"reason": "r"})
        assert answer.status == 503
        assert answer.json["error"]["code"] == "state_unavailable"
        assert (await site.admin("GET", user)).json["level"] == "banned"
    finally:
        redis.remove()


async def test_a_full_server_still_answers_its_operator(
    make_server: MakeServer, tmp_path: Path
) -> None:
    site = Site(make_server, tmp_path, limits={"max_in_flight": 1})
    site.server.front.in_flight = 1
    assert (await site.chat("user")).status == 503
    answer = await site.admin("POST", f"{USERS}/{site.id['user']}/ban", {"reason": "r"})
    assert answer.status == 200


# -- what is told -------------------------------------------------------------------------------


async def test_audit_and_metrics(site: Site) -> None:
    site.find("user", Level.DEGRADED)
    body = {"reason": "a private remark", "seconds": 60}
    await site.admin("POST", f"{USERS}/{site.id['user']}/ban", body)
    await site.chat("user")
    first, second = site.events()
    assert (first["action"], first["from"], first["to"]) == ("observe", "clear", "degraded")
    assert (first["by"], first["score"], first["queries"]) == ("detector", 0.9, 100)
    assert (second["action"], second["to"]) == ("ban", "banned")
    assert second["by"] == site.id["operator"]
    assert "remark" not in site.audit.read_text()
    (refused,) = site.events("refused")
    assert refused["code"] == "banned"
    metrics = site.server.front.metrics
    by = metrics.transitions.labels("degraded", "banned", "operator")
    assert by._value.get() == 1
    assert site.id["user"] not in str(list(metrics.transitions.collect()))


def test_several_servers_need_a_shared_store(tmp_path: Path) -> None:
    def start(**changed: Any) -> None:
        sections = {"audit": {"log": "off"}, **changed.pop("sections", {})}
        Front().configure(
            SimpleNamespace(additional_config={"vauban": sections}, host="127.0.0.1", **changed)
        )

    with pytest.raises(ConfigError, match="2 API servers"):
        start(api_server_count=2)
    with pytest.raises(ConfigError, match="4 engines"):
        start(api_server_count=1, data_parallel_size=4)
    start(api_server_count=None, data_parallel_size=1)
    start(api_server_count=2, sections={"response": {"mode": "off"}})
    start(api_server_count=2, sections={"state": {"store": f"sqlite://{tmp_path}/s.db"}})
