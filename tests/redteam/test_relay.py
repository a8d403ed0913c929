"""The relay passes what it is given, keeps the books, and loses patience in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from fake_target import BLOCKED, Target, answer
from vauban.redteam import relay as relay_module
from vauban.redteam.outcome import Outcome, classify, digest_of_messages
from vauban.redteam.relay import Bounds, Relay

FAST = Bounds(request_s=60, retries=1, max_wait_s=0.01, hopeless_after=3)
HELLO = [{"role": "user", "content": "Hello"}]


def ask(relay: Relay, text: str = "Hello", **more: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{relay.url}/v1/chat/completions", json=body, timeout=30)


def test_an_answer_passes_unchanged(target: Target) -> None:
    with Relay(target.url, key="sk-secret", bounds=FAST) as relay:
        told = ask(relay, "Hé 🜁", temperature=0)
        assert httpx.get(f"{relay.url}/v1/models").status_code == 200
        assert (told.status_code, told.json()) == (200, answer("Hé 🜁"))
        assert target.seen[0]["temperature"] == 0
        assert target.keys == ["Bearer sk-secret"]
        prompt = digest_of_messages([{"role": "user", "content": "Hé 🜁"}])
        assert relay.books.take(prompt) == Outcome("answered")
        assert relay.books.take(prompt) is None


def test_a_block_is_told_with_its_stage(target: Target) -> None:
    target.mode = "block"
    with Relay(target.url, bounds=FAST) as relay:
        assert ask(relay).json() == BLOCKED
        assert relay.books.take(digest_of_messages(HELLO)) == Outcome("blocked", "classifier")
        assert relay.books.policy_digest == "abc123"
        for _ in range(5):
            ask(relay)
        assert relay.books.hopeless is None


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("hang", "timeout"),
        ("drip", "timeout"),
        ("flood", "dead_target"),
        ("hang up", "dead_target"),
        ("throttle", "rate_limited"),
        ("broken", "server_error"),
        ("nonsense", "server_error"),
    ],
)
def test_no_answer_is_an_error_and_then_hopeless(
    target: Target, mode: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never a status that the tools would repeat for ever."""
    monkeypatch.setattr(relay_module, "MAX_ANSWER_BYTES", 2**21)
    target.mode = mode
    bounds = replace(FAST, request_s=0.2) if mode in ("hang", "drip") else FAST
    with Relay(target.url, bounds=bounds) as relay:
        statuses = [ask(relay).status_code for _ in range(3)]
        assert relay.books.counts["error"] == 3
        assert relay.books.take(digest_of_messages(HELLO)) == Outcome("error", kind)
        assert relay.books.hopeless == kind
        assert statuses == ([200] if mode == "nonsense" else [400]) * 3
        before = len(target.seen)
        ask(relay)  # hopeless: the target is left alone
        assert len(target.seen) == before


def test_nobody_listens() -> None:
    with Relay("http://127.0.0.1:1/v1", bounds=FAST) as relay:
        assert ask(relay).status_code == 400
        assert relay.books.take(digest_of_messages(HELLO)) == Outcome("error", "dead_target")


def test_a_throttled_moment_is_waited_for(target: Target) -> None:
    target.mode = "throttle twice"
    with Relay(target.url, bounds=replace(FAST, retries=2)) as relay:
        assert ask(relay).status_code == 200
        assert len(target.seen) == 3
        assert relay.books.counts == {"requests": 1, "answered": 1}


def test_one_answer_in_between_keeps_hope(target: Target) -> None:
    with Relay(target.url, bounds=FAST) as relay:
        for mode in ("broken", "broken", "answer", "broken", "broken"):
            target.mode = mode
            ask(relay)
        assert relay.books.hopeless is None


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 50_000, b'{"messages": [1, null]}', b"1"])
def test_any_body_is_passed_or_refused(body: bytes) -> None:
    with Relay("http://127.0.0.1:1", bounds=FAST) as relay:
        assert httpx.post(f"{relay.url}/v1/chat/completions", content=body).status_code == 400
        assert relay.books.counts["requests"] == 1


@pytest.mark.parametrize(
    ("status", "body", "headers", "wanted"),
    [
        (200, answer("x"), {}, Outcome("answered")),
        (200, answer("x", "content_filter"), {}, Outcome("blocked", "unknown")),
        (
            200, answer("x", "content_filter"), {"x-vauban-reason": "unread_text"},
            Outcome("blocked", "normalise"),
        ),
        (400, {"error": {"code": "content_filter"}}, {}, Outcome("blocked", "unknown")),
        (
            400, {"error": {"code": "content_filter", "reason": "screen_timeout"}}, {},
            Outcome("blocked", "screening_failed"),
        ),
        (
            400, {"error": {"code": "content_filter", "reason": ["x"]}}, {},
            Outcome("blocked", "unknown"),
        ),
        (413, {"error": {"code": "request_too_large"}}, {}, Outcome("blocked", "limits")),
        (400, {"error": {"code": 400}}, {}, Outcome("error", "rejected")),
        (401, {"error": {"code": "invalid_api_key"}}, {}, Outcome("error", "rejected")),
        (404, None, {}, Outcome("error", "rejected")),
        (429, None, {}, Outcome("error", "rate_limited")),
        (503, [], {}, Outcome("error", "server_error")),
        (200, None, {}, Outcome("error", "server_error")),
        (200, {"choices": "x"}, {}, Outcome("answered")),
    ],
)  # fmt: skip
def test_what_an_answer_means(
    status: int, body: Any, headers: dict[str, str], wanted: Outcome
) -> None:
    assert classify(status, body, headers) == wanted
