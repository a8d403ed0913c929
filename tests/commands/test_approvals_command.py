"""`vauban approvals` as an approver types it, against a server that answers as vauban's does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from test_users_command import KEY, Fake
from typer.testing import CliRunner, Result

from vauban.cli import app
from vauban.errors import VaubanError

ID = "apr_" + "x" * 24
APPROVAL = {
    "id": ID, "state": "pending", "caller": "key:agent0000000", "created": "2026-01-01T00:00:00Z",
    "expires": "2026-01-01T00:10:00Z", "by": "", "reason": "", "decided": None, "policy": "p",
    "calls": [{"tool": "send_email", "why": "destructive", "schema_sha256": "",
               "arguments": '{"text":"[red]\\u202e","to":"a@example.org"}'}],
}  # fmt: skip


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    made.answers = [(200, json.dumps(APPROVAL).encode())]
    yield made
    made.server.shutdown()
    made.server.server_close()


def run(fake: Fake, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["approvals", *arguments, "--url", fake.url],
        env={"VAUBAN_KEY": KEY, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("show", ID), ("GET", f"/vauban/approvals/{ID}", None)),
        (("approve", ID, "--reason", "r"),
         ("POST", f"/vauban/approvals/{ID}/approve", {"reason": "r"})),
        (("deny", ID, "--reason", "r"), ("POST", f"/vauban/approvals/{ID}/deny", {"reason": "r"})),
        (("show", "../users"), ("GET", "/vauban/approvals/..%2Fusers", None)),
    ],
)  # fmt: skip
def test_what_the_server_is_asked(fake: Fake, arguments: tuple[str, ...], wanted: Any) -> None:
    result = run(fake, *arguments)
    assert result.exit_code == 0, result.output
    assert fake.asked == [(*wanted, f"Bearer {KEY}")]


def test_what_would_be_called_is_shown_whole_and_as_it_is(fake: Fake) -> None:
    shown = run(fake, "show", ID).output
    for part in ("key:agent0000000", "send_email (destructive)", "a@example.org", r"[red]\u202e"):
        assert part in shown
    assert json.loads(run(fake, "show", ID, "--json").output) == APPROVAL


def test_a_held_answer_is_shown_whole_and_in_ascii(fake: Fake) -> None:
    texts = ["the [red]first\nand \u202eall of it\x1b[2J", "a second"]
    fake.answers = [(200, json.dumps({**APPROVAL, "answer": texts}).encode())]
    shown = run(fake, "show", ID).output
    assert "answer    the [red]first\n          and \\u202eall of it\\u001b[2J" in shown
    assert "answer    a second" in shown


def test_the_list(fake: Fake) -> None:
    fake.answers = [(200, json.dumps({"approvals": [APPROVAL]}).encode())]
    shown = run(fake, "list").output
    assert ID in shown
    assert "send_email" in shown
    assert run(fake, "list", "--state", "all", "--limit", "5").exit_code == 0
    paths = [path for _, path, _, _ in fake.asked]
    assert paths == ["/vauban/approvals?limit=100&state=pending", "/vauban/approvals?limit=5"]


def test_the_key_of_receipts(fake: Fake) -> None:
    fake.answers = [(200, b'{"key": {"kty": "OKP"}}')]
    assert json.loads(run(fake, "key").output) == {"kty": "OKP"}


@pytest.mark.parametrize("arguments", [("approve", ID), ("deny", ID), ("show",)])
def test_what_is_missing_is_said(fake: Fake, arguments: tuple[str, ...]) -> None:
    assert run(fake, *arguments).exit_code == 2
    assert fake.asked == []


def test_a_refusal_is_told(fake: Fake) -> None:
    fake.answers = [(403, b'{"error": {"message": "it takes another credential"}}')]
    result = run(fake, "approve", ID, "--reason", "r")
    assert isinstance(result.exception, VaubanError)
    assert "another credential" in str(result.exception)
