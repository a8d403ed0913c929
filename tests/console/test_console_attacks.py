"""The console attacked without a browser: forms, cookies, names, sizes and slowness."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from console_site import Operator, Site, raw

from redis_server import RedisServer
from vauban.access.keyfile import revoke_key
from vauban.console import forms, serve
from vauban.types import SERVICE, Evidence, Level, Principal, PrincipalKind

PAGES = ("/decisions", "/approvals", "/users", "/policy", "/health")
SignedIn = Callable[..., Operator]


# -- who gets in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, "/approvals/apr_" + "x" * 24, "/users/anon:local"])
def test_nothing_without_a_session(operator: SignedIn, path: str) -> None:
    nobody = operator()
    for method in ("GET", "POST"):
        answer = nobody.http.request(
            method, path, data={"act": "approve", "reason": "x"} if method == "POST" else None,
            headers={"origin": nobody.site.url},
        )  # fmt: skip
        if answer.status_code != 405:  # a page without a form
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
            # A link from another site sends no cookie: following it must not sign anybody out.
            assert "set-cookie" not in answer.headers
    assert nobody.get(path, headers={"x-console-part": "1"}).status_code == 401


@pytest.mark.parametrize(
    ("key", "status", "told"),
    [
        ("", 401, "not a key"), ("x" * 20_000, 401, "not a key"), ("vbn_a b", 401, "not a key"),
        ("vbn_\r\nx-evil: 1", 401, "not a key"), ("\u202evbn_abcdefgh", 401, "not a key"),
        ("vbn_000000000000_" + "a" * 38, 401, "does not accept"),
    ],
)  # fmt: skip
def test_keys_that_are_none(operator: SignedIn, key: str, status: int, told: str) -> None:
    answer = operator().sign_in(key)
    assert answer.status_code == status
    assert told in answer.text
    assert "set-cookie" not in answer.headers
    assert not key or key not in answer.text


def test_a_key_needs_the_consoles_scope(site: Site, operator: SignedIn) -> None:
    for name in ("caller", "stranger"):  # `*`, `approve` and `admin` don't cover it
        answer = operator().sign_in(site.keys[name])
        assert answer.status_code == 403
        assert "does not have the scope console" in answer.text


def test_the_cookie(site: Site, operator: SignedIn) -> None:
    cookie = operator().sign_in(site.keys["reader"]).headers["set-cookie"].lower()
    for part in ("httponly", "samesite=strict", "path=/", f"max-age={site.policy.session_s}"):
        assert part in cookie
    assert "domain" not in cookie
    assert site.keys["reader"].lower() not in cookie


def test_guessing_is_limited(make_site: Callable[..., Site]) -> None:
    site = make_site(console={"logins_per_min": 5})
    nobody = Operator(site)
    tried = [nobody.sign_in(f"vbn_{n:012}_{'a' * 38}", **{"x-forwarded-for": f"10.0.0.{n}"})
             for n in range(12)]  # fmt: skip
    assert [answer.status_code for answer in tried] == [401] * 5 + [429] * 7
    assert 1 <= int(tried[-1].headers["retry-after"]) <= 60
    assert nobody.sign_in(site.keys["reader"]).status_code == 429
    assert len(site.audit("refused")) == 5  # the guarded server was spared the rest
    site.offset_s = 61.0
    assert nobody.sign_in(site.keys["reader"]).status_code == 303


def test_a_session_can_not_be_planted(site: Site) -> None:
    victim = Operator(site)
    name = f"vauban_{site.port}"
    victim.http.cookies.set(name, "planted", domain="127.0.0.1")
    victim.sign_in(site.keys["approver"])
    assert "planted" not in victim.http.cookies.values()
    attacker = Operator(site)
    attacker.http.cookies.set(name, "planted", domain="127.0.0.1")
    assert attacker.get("/decisions").status_code == 303


def test_signing_in_again_ends_the_old_session(site: Site) -> None:
    first = Operator(site, "reader")
    stolen = Operator(site)
    stolen.http.cookies.update(first.http.cookies)
    assert stolen.get("/decisions").status_code == 200
    first.sign_in(site.keys["reader"])
    assert stolen.get("/decisions").status_code == 303


def test_sessions_end(make_site: Callable[..., Site]) -> None:
    site = make_site(console={"idle_s": 100, "session_s": 250, "max_sessions": 2})
    one = Operator(site, "reader")
    for _ in range(2):
        site.offset_s += 90
        assert one.get("/decisions").status_code == 200  # in use, so it goes on
    site.offset_s += 90
    assert one.get("/decisions").status_code == 303  # 270 s after it began
    two = Operator(site, "reader")
    site.offset_s += 60
    for _ in range(3):  # a page left open does not keep anybody signed in
        assert two.get("/decisions", headers={"x-console-part": "1"}).status_code == 200
    site.offset_s += 60
    assert two.get("/decisions").status_code == 303
    many = [Operator(site, "reader") for _ in range(3)]
    assert [operator.get("/decisions").status_code for operator in many] == [303, 200, 200]
    csrf = many[2].csrf
    assert many[2].post("/logout", {"csrf": "wrong"}).status_code == 403
    assert many[2].post("/logout", {"csrf": csrf}).status_code == 303
    assert many[2].get("/decisions").status_code == 303


def test_a_revoked_key_is_signed_out(make_site: Callable[..., Site]) -> None:
    site = make_site()
    operator = Operator(site, "approver")
    assert operator.get("/decisions").status_code == 200
    revoke_key(site._file, "approver")
    for _ in range(200):
        answer = operator.get("/decisions")
        if answer.status_code != 200:
            break
        threading.Event().wait(0.05)
    assert answer.headers["location"] == "/login?ended=1"
    assert "signed out" in operator.get("/login?ended=1").text
    assert operator.get("/decisions").headers["location"] == "/login"


@pytest.mark.parametrize(
    ("name", "path"),
    [("reader", "/approvals"), ("reader", "/users"), ("approver", "/users"),
     ("approver", "/users/anon:local")],
)  # fmt: skip
def test_a_session_opens_what_its_key_opens(operator: SignedIn, name: str, path: str) -> None:
    answer = operator(name).get(path)
    assert answer.status_code == 403
    assert "lacks the scope" in answer.text


# -- forms of others -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("https://evil.test", {}), ("null", {}), (None, {}), ("http://127.0.0.1:1", {}),
        ("own", {"sec-fetch-site": "cross-site"}), ("own", {"sec-fetch-site": "same-site"}),
        (None, {"sec-fetch-site": "none"}),
        ("https://evil.test", {"sec-fetch-site": "same-origin"}),
    ],
)  # fmt: skip
def test_a_form_of_another_site(
    site: Site, operator: SignedIn, origin: str | None, headers: dict[str, str]
) -> None:
    held = site.hold(to="boss@example.org")
    victim = operator("approver")
    fields = {"csrf": victim.csrf, "act": "approve", "reason": "x"}
    for path in (f"/approvals/{held.id}", "/login", "/logout"):
        answer = victim.post(path, fields, origin=origin, **headers)
        assert answer.status_code == 403
        assert "not the console's own" in answer.text
    assert site.state(held) == "pending"


def test_a_form_without_this_sessions_token(site: Site, operator: SignedIn) -> None:
    held = site.hold(to="boss@example.org")
    victim, other = operator("approver"), operator("second")
    for csrf in ("", "x", other.csrf, victim.csrf + "x", "\u00e9"):
        answer = victim.post(
            f"/approvals/{held.id}", {"csrf": csrf, "act": "approve", "reason": "x"}
        )
        assert answer.status_code == 403
        assert "not of this session" in answer.text
    assert site.state(held) == "pending"
    as_query = f"/approvals/{held.id}?act=approve&reason=x&csrf={victim.csrf}"
    victim.get(as_query)
    victim.http.put(as_query)
    assert site.state(held) == "pending"


@pytest.mark.parametrize(
    "host",
    ["evil.test", "evil.test:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.test",
     "localhost", "", "127.0.0.1:{port}@evil.test", "2130706433:{port}"],
)  # fmt: skip
def test_another_name_that_leads_here(site: Site, operator: SignedIn, host: str) -> None:
    """DNS rebinding: the page is the attacker's, the address is ours."""
    victim = operator("approver")
    for path in ("/decisions", "/login", "/static/console.js", "/nothing"):
        answer = victim.get(path, headers={"host": host.format(port=site.port)})
        assert answer.status_code == 421
        assert "key:" not in answer.text
    assert victim.get("/decisions", headers={"host": f"localhost:{site.port}"}).status_code == 200


async def test_two_names_at_once(site: Site) -> None:
    for second in (b"evil.test", f"127.0.0.1:{site.port}".encode()):
        head = b"GET /login HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nhost: %b\r\n\r\n"
        answer = await raw(site.port, head % (site.port, second), 20)
        assert answer is None or not answer.startswith(b"HTTP/1.1 200")


# -- what is said and not said ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/login", "/decisions", "/static/console.js", "/static/console.css", "/static/icon.svg",
     "/nothing", "/approvals/apr_x", "/"],
)  # fmt: skip
def test_every_answer_has_the_headers(operator: SignedIn, path: str) -> None:
    headers = operator("reader").get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert "server" not in headers


def test_pages_have_nothing_inline(site: Site, operator: SignedIn) -> None:
    somebody = operator("operator")
    held = site.hold(to="boss@example.org")
    site.watch("caller", [0.1, 0.2])
    for path in (*PAGES, "/login", f"/approvals/{held.id}", f"/users/{site.id['caller']}"):
        text = somebody.get(path).text
        assert "<style" not in text
        assert " style=" not in text
        assert text.count("<script") == text.count('<script src="/static/console.js"') == 1


@pytest.mark.parametrize(
    "path",
    [
        "/static/../desk.py", "/static/%2e%2e/desk.py", "/static/..%2fdesk.py",
        "/static/console.js/../../app.py", "/static//etc/passwd", "/static/", "/static",
        "/users/..%2f..%2fvauban%2fstatus", "/users/../../status", "/users/key:x%2f..%2f..",
        "/users/%2e%2e", "/users/key:000000000000/ban", "/users/key%3a000000000000%3flevel=x",
        "/approvals/..%2fusers", "/approvals/%2e%2e%2fme", "/approvals/apr_x%00",
        "/users/<script>", "/users/%ff%fe", "//evil.test/", "/\\evil.test",
    ],
)  # fmt: skip
async def test_paths_that_lead_elsewhere(site: Site, path: str) -> None:
    cookies = Operator(site, "operator").http.cookies
    cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
    head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{site.port}\r\ncookie: {cookie}\r\n"
    answer = await raw(site.port, f"{head}connection: close\r\n\r\n".encode("latin-1"), 20)
    assert answer is not None
    status = int(answer.split(b" ", 2)[1])
    assert status in (303, 307, 400, 404)
    assert b"evil.test" not in answer.partition(b"\r\n\r\n")[0]
    assert b"root:" not in answer
    assert b"import" not in answer


@pytest.mark.parametrize("path", ["/login?next=//evil.test", "/?to=https://evil.test"])
def test_no_redirect_leads_out(site: Site, path: str) -> None:
    nobody = Operator(site)
    answer = nobody.post("/login?next=//evil.test", {"key": site.keys["reader"], "next": "//evil"})
    assert answer.headers["location"] == "/decisions"
    assert "evil" not in nobody.get(path).text
    assert "evil" not in nobody.get("/users?user=//evil.test").headers.get("location", "")


def test_a_proposed_service_comes_with_what_to_run(site: Site, operator: SignedIn) -> None:
    who = Principal("key:aprogramaaaa", PrincipalKind.KEY)
    site.watch(who.id, [0.4], Level.FLAGGED)
    page = f"/users/{who.id}"
    assert "vauban keys service" not in operator("operator").get(page).text
    site.front.ledger.observe(who, Evidence(0.4, Level.FLAGGED, 64, proposed=SERVICE))
    assert "vauban keys service" in operator("operator").get(page).text


def test_links_are_quoted(site: Site, operator: SignedIn) -> None:
    site.ask("anon:2001:db8::/64")
    site.ask('x"><b>')
    text = operator("operator").get("/decisions").text
    assert 'href="/users/anon%3A2001%3Adb8%3A%3A%2F64"' in text
    assert "<b>" not in text
    assert operator("operator").get("/users/anon%3A2001%3Adb8%3A%3A%2F64").status_code == 200


# -- too much, too slow, broken --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"csrf=" + b"x" * 10_000_000, forms._FORM, 413), (b"a=1&" * 1_000, forms._FORM, 400),
        (b"{}", "application/json", 400), (b"", "", 400), (b"act=a&act=b", forms._FORM, 400),
        (b"\xff\xfe=%ff", forms._FORM, 400), (b"--x", "multipart/form-data; boundary=x", 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_form(
    site: Site, operator: SignedIn, content: bytes, kind: str, status: int
) -> None:
    somebody = operator("operator")
    headers = {"origin": site.url, "content-type": kind}
    for path in ("/login", "/users/anon:local", "/logout"):
        answer = somebody.http.post(path, content=content, headers=headers)
        assert answer.status_code == status, path
    assert somebody.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/decisions?principal=" + "x" * 301, "/decisions?event=a&event=b", "/users?level=nobody",
     "/approvals?state=open", "/login?ended=a&ended=b",
     "/decisions?" + "&".join(f"a{n}=" for n in range(20))],
)  # fmt: skip
def test_queries_that_are_not_taken(operator: SignedIn, path: str) -> None:
    answer = operator("operator").get(path)
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text


def test_acts_that_are_none(site: Site, operator: SignedIn) -> None:
    held = site.hold(to="boss@example.org")
    somebody = operator("operator")
    csrf = somebody.csrf
    for path, fields in (
        (f"/approvals/{held.id}", {"act": "release", "reason": "x"}),
        (f"/approvals/{held.id}", {"act": "approve", "reason": "   "}),
        (f"/approvals/{held.id}", {"act": "approve", "reason": "x" * 501}),
        (f"/approvals/{held.id}", {"act": "approve", "reason": "a\nb"}),
        (f"/users/{site.id['caller']}", {"act": "forget", "reason": "x"}),
        (f"/users/{site.id['caller']}", {"act": "ban", "reason": "x", "hours": "-1"}),
        (f"/users/{site.id['caller']}", {"act": "ban", "reason": "", "hours": "1"}),
    ):
        answer = somebody.post(path, {"csrf": csrf, **fields})
        assert answer.status_code == 400, fields
    assert site.state(held) == "pending"
    assert site.front.ledger.remembered(site.id["caller"]).level == 0


async def test_clients_that_do_not_finish(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_S", 0.5)
    monkeypatch.setattr(forms, "FORM_S", 0.5)
    host = b"host: 127.0.0.1:%d\r\n" % site.port
    whole = b"GET /login HTTP/1.1\r\n" + host + b"\r\n"
    for sent in (b"", b"GET /login HT", b"GET /login HTTP/1.1\r\n" + host):
        assert await raw(site.port, sent, 20) is not None, sent  # the console hangs up
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(whole)
    await reader.readuntil(b"</html>")
    writer.write(b"GET /lo")
    async with asyncio.timeout(10):  # before the idle connection's own time is over
        await reader.read()
    writer.close()
    form = (
        b"POST /login HTTP/1.1\r\norigin: http://127.0.0.1:%d\r\n" % site.port + host
        + b"content-type: application/x-www-form-urlencoded\r\ncontent-length: 99\r\n"
        b"connection: close\r\n\r\nkey="
    )  # fmt: skip
    answer = await raw(site.port, form, 20)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 408")
    many = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(100)]
    answer = await raw(site.port, whole.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), 20)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 200")
    for connection in many:
        connection.close()


def test_ten_approvers_at_once(site: Site) -> None:
    held = site.hold(to="boss@example.org")
    race(site, site, held)


def race(one: Site, other: Site, held: Any) -> None:
    operators = [Operator(s, name) for s in (one, other) for name in ("approver", "second")] * 2
    csrf = [operator.csrf for operator in operators]
    start = threading.Barrier(len(operators))
    answers: list[httpx.Response] = []

    def go(number: int) -> None:
        start.wait()
        answers.append(
            operators[number].post(
                f"/approvals/{held.id}",
                {"csrf": csrf[number], "act": "approve", "reason": f"number {number}"},
            )
        )

    threads = [threading.Thread(target=go, args=(n,)) for n in range(len(operators))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.status_code for a in answers) == [303] + [409] * (len(operators) - 1)
    assert one.state(held) == other.state(held) == "approved"


def test_two_servers_with_one_redis(
    make_site: Callable[..., Site], redis_server: RedisServer
) -> None:
    """Two consoles before two servers: one approval, one winner."""
    store = {"store": redis_server.url, "prefix": "console", "refresh_ms": 50}
    one, other = (make_site(tools={"store": redis_server.url}, state=store) for _ in range(2))
    held = one.hold(to="boss@example.org")
    assert held.id in Operator(other, "approver").get("/approvals").text
    race(one, other, held)


def test_a_lost_store(make_site: Callable[..., Site], own_redis_server: RedisServer) -> None:
    url = own_redis_server.url
    store = {"store": url, "refresh_ms": 50, "stale_after_ms": 300, "timeout_ms": 200}
    site = make_site(tools={"store": url}, state=store)
    held = site.hold(to="boss@example.org")
    operator = Operator(site, "operator")
    own_redis_server.kill()
    answer = operator.decide(held, "approve")
    assert answer.status_code == 503
    assert "look whether it was done" in answer.text
    assert operator.get("/approvals").status_code == 503
    for _ in range(100):
        text = operator.get("/health").text
        if "store of users (valkey) does not answer" in text:
            break
        threading.Event().wait(0.05)
    assert "The store of users (valkey) does not answer" in text
    assert "The store of approvals does not answer" in text
    assert "what the server last knew" in operator.get("/users").text
    assert operator.get("/decisions").status_code == 200
    own_redis_server.start()
    assert operator.decide(held, "approve").status_code == 303
    assert site.state(held) == "approved"
