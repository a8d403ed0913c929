"""A guarded server's own routes and the console before it, both on real sockets: the front and its
stores are real, the model behind them is not there, since no page asks it for anything."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry

from vauban.access.approval import Approval, Call
from vauban.access.arguments import canonical
from vauban.access.keyfile import add_key
from vauban.commands.local_server import free_port
from vauban.console.app import make_app
from vauban.console.guarded import GuardedServer
from vauban.console.serve import server
from vauban.console.shield import Place
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.middleware import GuardMiddleware
from vauban.mark import Sealer
from vauban.policy_console import ConsolePolicy
from vauban.telemetry import Decision, Metrics
from vauban.types import Evidence, Level, Principal, PrincipalKind, RateLimit

SECRET = b"0123456789abcdef" * 2
KEYS = {
    "caller": ("*",),
    "reader": ("console",),
    "approver": ("console", "approve"),
    "second": ("console", "approve"),
    "operator": ("console", "approve", "admin"),
    "both": ("*", "console", "approve"),
    "stranger": ("*", "approve", "admin"),
}
START_S = 30


class Running:
    """A uvicorn server in a thread of its own."""

    def __init__(self, made: uvicorn.Server) -> None:
        self._server = made
        self._thread = threading.Thread(target=made.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not made.started:
            assert self._thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(START_S)


class Guarded:
    """A guarded server: keys, stores, its own routes on a port.

    :param sections: of the policy.
    """

    def __init__(self, path: Path, keys: Path, **sections: Any) -> None:
        sections.setdefault("tools", {"store": f"sqlite://{path}/approvals.db"})
        sections.setdefault("state", {"store": f"sqlite://{path}/state.db", "refresh_ms": 50})
        sections.setdefault("audit", {"log": str(path / "audit.log")})
        sections["identity"] = {"keys_file": str(keys)}
        self.front = Front()
        self.front.metrics = Metrics(CollectorRegistry())
        self.front.configure(
            SimpleNamespace(additional_config={"vauban": sections}, host="127.0.0.1")
        )
        self.front.place = "engine"
        self.front.default_model = "standin"
        self.front.open_tool_gate(Sealer(SECRET), given=True)
        self.front.ledger.open()
        self.port = free_port(None)
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        async def nothing(_scope: Any, _receive: Any, _send: Any) -> None:
            raise AssertionError("no route of the model's is asked for")

        app = GuardMiddleware(nothing, front=self.front)
        config = uvicorn.Config(app, port=self.port, lifespan="off", log_level="critical")
        self._running = Running(uvicorn.Server(config))

    def stop(self) -> None:
        self._running.stop()

    def close(self) -> None:
        self.stop()
        self.front.ledger.close()
        self.front.tool_gate.approvals.close()


class Site:
    """A guarded server and a console, with keys for everybody."""

    def __init__(
        self, path: Path, *, console: dict[str, Any] | None = None, **sections: Any
    ) -> None:
        self.keys: dict[str, str] = {}
        self.id: dict[str, str] = {}
        self._file = path / "keys.json"
        for name, scopes in KEYS.items():
            self.add_key(name, scopes)
        policy = {"refresh_s": 1, "logins_per_min": 1000, **(console or {})}
        sections["console"] = policy
        self.guarded = Guarded(path, self._file, **sections)
        self.front = self.guarded.front
        self.offset_s = 0.0
        self.policy = ConsolePolicy(**policy)
        self.port = free_port(None)
        self.url = f"http://127.0.0.1:{self.port}"
        self._running = Running(server(self.app(self.port), "127.0.0.1", self.port))

    def app(self, port: int) -> Any:
        guarded = GuardedServer(self.guarded.url, local=True, timeout_ms=30_000)
        place = Place.at("127.0.0.1", port)
        return make_app(self.policy, guarded, place, lambda: time.monotonic() + self.offset_s)

    def add_key(self, name: str, scopes: tuple[str, ...]) -> None:
        key, record = add_key(
            self._file, name, scopes, created=datetime.now(UTC), expires=None, limit=RateLimit()
        )
        self.keys[name], self.id[name] = key.text, f"key:{record.id}"

    def close(self) -> None:
        self._running.stop()
        self.guarded.close()

    # -- what callers do --------------------------------------------------------------------------

    def hold(self, tool: str = "send_email", by: str = "caller", **arguments: Any) -> Approval:
        call = Call("call_1", tool, canonical(arguments), "", "destructive")
        return self.front.tool_gate.approvals.hold(self.id[by], [call])

    def state(self, approval: Approval) -> str:
        return self.front.tool_gate.approvals.get(approval.id).state.value

    def decide(self, approval: Approval, *, approve: bool, by: str = "second") -> None:
        self.front.tool_gate.approvals.decide(
            approval.id, approve=approve, by=self.id[by], reason="I know them"
        )

    def ask(self, by: str = "caller", *, excerpt: Any = None, **fields: Any) -> None:
        given: dict[str, Any] = {
            "request_id": secrets.token_hex(12), "principal": self.id.get(by, by),
            "route": "/v1/chat/completions", "action": "allow", "proposed": "allow",
            "reason": "clean", "policy": self.front.digest, "score": 0.02, "chars": 120,
            "segments": 2, "tokens": 40, "batch": 1, "front_ms": 1.2, "encode_ms": 6.0,
        }  # fmt: skip
        self.front.record(Decision(**{**given, **fields}), excerpt)

    def watch(self, by: str, scores: list[float], level: Level = Level.CLEAR) -> None:
        """Queries, as the extraction detector tells of them."""
        who = Principal(self.id.get(by, by), PrincipalKind.KEY)
        for number, score in enumerate(scores):
            at = ((number * 7 % 19 - 9) / 20, (number * 5 % 17 - 8) / 20)
            found = Evidence(score, Level.CLEAR, number, (("arm:order", 1.5),), at=at)
            self.front.learn(who, found)
        if level:
            self.front.ledger.observe(who, Evidence(scores[-1], level, len(scores)))

    def audit(self, event: str) -> list[dict[str, Any]]:
        lines = Path(str(self.front.policy.audit.log)).read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if row["event"] == event]


class Operator:
    """Somebody with an HTTP client and no browser."""

    def __init__(self, site: Site, name: str | None = None) -> None:
        self.site = site
        # Reading the certificates of the world takes longer than all else here.
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.http = httpx.Client(base_url=site.url, timeout=30, verify=no_tls)
        if name is not None:
            assert self.sign_in(site.keys[name]).headers["location"] == "/decisions"

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(
        self, path: str, fields: dict[str, str], *, origin: str | None = "own", **headers: str
    ) -> httpx.Response:
        if origin is not None:
            headers["origin"] = self.site.url if origin == "own" else origin
        return self.http.post(path, data=fields, headers=headers)

    def sign_in(self, key: str, **options: Any) -> httpx.Response:
        return self.post("/login", {"key": key}, **options)

    @property
    def csrf(self) -> str:
        page = self.get("/decisions?principal=nobody").text
        return page.partition('name="csrf" value="')[2].partition('"')[0]

    def decide(self, approval: Approval, act: str, reason: str = "I know them") -> httpx.Response:
        return self.post(
            f"/approvals/{approval.id}", {"csrf": self.csrf, "act": act, "reason": reason}
        )


def until(told: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def raw(port: int, sent: bytes, wait_s: float) -> bytes | None:
    """What comes back for some bytes until the other end closes; None: it does not in time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        await writer.drain()
        async with asyncio.timeout(wait_s):
            return await reader.read()
    except TimeoutError:
        return None
    finally:
        writer.close()
