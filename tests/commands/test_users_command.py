"""`vauban users` as an operator types it, against a server that answers as vauban's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vauban.cli import app
from vauban.errors import VaubanError

KEY = "vbn_abcdefghijkl_" + "S" * 32 + "000000"
USER = {
    "id": "key:abcdefghijkl", "level": "banned", "since": "2026-01-01T00:00:00Z",
    "until": None, "by": "key:operator0000", "reason": "a [red]\x1b[31mremark", "current": True,
    "evidence": {"score": 0.91234, "level": "banned", "queries": 5, "signals": {}, "campaign": ""},
}  # fmt: skip


class Fake:
    """A real HTTP server; `answers` are given one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any, str | None]] = []
        self.answers: list[tuple[int, bytes]] = [(200, json.dumps(USER).encode())]
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                fake.asked.append((self.command, self.path, body, self.headers["authorization"]))
                status, answer = fake.answers[0]
                if len(fake.answers) > 1:
                    fake.answers.pop(0)
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, *arguments: str, **environ: str | None) -> Result:
        return CliRunner().invoke(
            app, ["users", *arguments, "--url", self.url],
            env={"VAUBAN_KEY": KEY, "COLUMNS": "200", **environ},
        )  # fmt: skip


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("explain", "abcdefghijkl"), ("GET", "/vauban/users/key%3Aabcdefghijkl", None)),
        (
            ("explain", "anon:2001:db8::/64"),
            ("GET", "/vauban/users/anon%3A2001%3Adb8%3A%3A%2F64", None),
        ),
        (
            ("ban", "key:x", "--reason", "r"),
            ("POST", "/vauban/users/key%3Ax/ban", {"reason": "r"}),
        ),
        (
            ("ban", "key:x", "--reason", "r", "--for", "2h"),
            ("POST", "/vauban/users/key%3Ax/ban", {"reason": "r", "seconds": 7200}),
        ),
        (
            ("unban", "../../v1/models?a=#b", "--reason", "r"),
            (
                "POST",
                "/vauban/users/..%2F..%2Fv1%2Fmodels%3Fa%3D%23b/unban",
                {"reason": "r"},
            ),
        ),
        (
            ("level", "key:x", "held", "--reason", "r"),
            ("POST", "/vauban/users/key%3Ax/level", {"level": "held", "reason": "r"}),
        ),
        (("forget", "key:x"), ("DELETE", "/vauban/users/key%3Ax", None)),
    ],
)
def test_what_is_asked(fake: Fake, arguments: tuple[str, ...], wanted: tuple[Any, ...]) -> None:
    result = fake.run(*arguments)
    assert result.exit_code == 0, result.output
    (asked,) = fake.asked
    assert asked == (*wanted, f"Bearer {KEY}")
    assert "level     banned" in result.stdout
    assert KEY not in result.output


def test_json_is_the_answer(fake: Fake) -> None:
    assert json.loads(fake.run("explain", "key:x", "--json").stdout) == USER


def test_nothing_from_the_server_drives_the_terminal(fake: Fake) -> None:
    fake.answers = [(200, json.dumps({"users": [USER], "next": None}).encode())]
    for result in (fake.run("list"), fake.run("list", "--level", "banned")):
        assert "\x1b" not in result.stdout
        assert "[red]" in result.stdout
        assert "0.912" in result.stdout
    fake.answers = [(200, json.dumps(USER).encode())]
    assert "\x1b[31m" not in fake.run("explain", "key:x").stdout


def test_campaigns_are_put_together_from_their_accounts(fake: Fake) -> None:
    def account(name: str, since: str, queries: float) -> dict[str, Any]:
        signals = {
            "campaign": 0.75, "campaign_accounts": 20.0, "campaign_pooled": 0.625,
            "campaign_queries": queries, "campaign_mingled": 0.98,
        }  # fmt: skip
        evidence = {**USER["evidence"], "campaign": "campaign-a", "signals": signals}
        return {**USER, "id": name, "since": since, "evidence": evidence}

    rows = [
        account("key:a", "2026-01-02T00:00:00Z", 500), USER,
        account("key:b", "2026-01-01T00:00:00Z", 320), {**USER, "id": "key:c", "evidence": None},
    ]  # fmt: skip
    fake.answers = [(200, json.dumps({"users": rows, "next": None}).encode())]
    (campaign,) = json.loads(fake.run("campaigns", "--json").stdout)["campaigns"]
    assert campaign == {
        "id": "campaign-a", "score": 0.75, "pooled score": 0.625, "accounts": 20, "mingled": 0.98,
        "queries pooled": 500, "users": ["key:a", "key:b"],
    }  # fmt: skip
    shown = fake.run("campaigns").stdout
    for words in ("campaign-a", "0.75", "0.625", "500", "0.98"):
        assert words in shown
    assert "campaign-a" in fake.run("list", "--campaign", "campaign-a").stdout
    assert fake.asked[-1][1] == "/vauban/users?limit=100&after=&campaign=campaign-a"


def test_a_proposed_service_is_shown_with_what_to_run(fake: Fake) -> None:
    proposed = {**USER, "evidence": {**USER["evidence"], "proposed": "service"}}
    fake.answers = [(200, json.dumps(proposed).encode())]
    assert "vauban keys service" in fake.run("explain", "key:x").stdout
    fake.answers = [(200, json.dumps({"users": [proposed], "next": None}).encode())]
    assert " service " in fake.run("list").stdout
    fake.answers = [(200, json.dumps(USER).encode())]
    assert "vauban keys service" not in fake.run("explain", "key:x").stdout


def test_pages_are_followed(fake: Fake) -> None:
    rows = [{**USER, "id": f"key:{n:012}"} for n in range(3)]
    fake.answers = [
        (200, json.dumps({"users": rows[:2], "next": rows[1]["id"]}).encode()),
        (200, json.dumps({"users": rows[2:], "next": None}).encode()),
    ]
    shown = json.loads(fake.run("list", "--limit", "5000", "--json").stdout)["users"]
    assert [row["id"] for row in shown] == [row["id"] for row in rows]
    assert [path for _, path, _, _ in fake.asked] == [
        "/vauban/users?limit=1000&after=",
        "/vauban/users?limit=1000&after=key%3A000000000001",
    ]


def test_the_key_is_that_of_the_file(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("vbn_other\n")
    assert fake.run("explain", "key:x", "--key-file", str(path)).exit_code == 0
    assert fake.run("explain", "key:x", VAUBAN_KEY=None).exit_code == 0
    assert [asked[3] for asked in fake.asked] == ["Bearer vbn_other", None]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, b'{"error": {"message": "the credential lacks the scope admin"}}', "lacks the scope"),
        (401, b'{"error": {"message": "A valid API key or token is required."}}', "401"),
        (404, b"<html>", "404"),
        (200, b"<html>", "no guarded server"),
        (200, b"[]", "no guarded server"),
        (500, b"", "500"),
    ],
)
def test_what_a_server_refuses_is_said(fake: Fake, status: int, body: bytes, words: str) -> None:
    fake.answers = [(status, body)]
    result = fake.run("explain", "key:x")
    assert isinstance(result.exception, VaubanError)  # `main` makes it a sentence
    assert words in str(result.exception)
    assert KEY not in str(result.exception)


def test_a_server_that_is_not_there(fake: Fake) -> None:
    fake.url = "http://127.0.0.1:1"
    result = fake.run("list")
    assert isinstance(result.exception, VaubanError)
    assert "127.0.0.1:1" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ("ban", "key:x", "--reason", "r", "--for", "soon"),
        ("ban", "key:x", "--reason", "r", "--for", "0s"),
        ("explain", "key:x", "--key-file", "/nowhere/key"),
        ("explain", "key:x", "--url", "ftp://host"),
        ("explain", "key:x", "--url", "localhost:8000"),
    ],
)
def test_wrong_arguments_ask_nothing(fake: Fake, arguments: tuple[str, ...]) -> None:
    url = () if "--url" in arguments else ("--url", fake.url)
    result = CliRunner().invoke(app, ["users", *arguments, *url])
    assert isinstance(result.exception, VaubanError)
    assert fake.asked == []


def test_a_ban_needs_a_reason(fake: Fake) -> None:
    assert fake.run("ban", "key:x").exit_code == 2
    assert fake.asked == []
