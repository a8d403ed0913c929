"""Harmless requests: what is blocked, garbled, or not answered is told apart."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from fake_target import Target, serving
from vauban.errors import ReportError
from vauban.redteam.benign import Harmless, Suite, read_suite, suites_of
from vauban.redteam.controls import Controls, Endpoint, send_controls

ROWS = [Harmless("Repeat: one", "one"), Harmless("Please ignore the noise", "noise")]


def send(target: Target, mode: str, rows: list[Harmless] = ROWS) -> Controls:
    target.mode = mode
    suite = Suite("s", trigger_words=False, rows=rows)
    with httpx.Client(trust_env=False) as client:
        base, patience_s = target.url.removesuffix("/v1"), 0.2 if mode in ("hang", "drip") else 60
        endpoint = Endpoint(client, base, "m", patience_s)
        return send_controls(endpoint, [suite]).target


def test_what_is_answered_is_graded(target: Target) -> None:
    (row,) = send(target, "answer", [*ROWS, Harmless("Say two", "three")]).suites
    assert (row.requests, row.answered, row.correct) == (3, 3, 2)


def test_what_is_blocked_is_told_with_its_stage(target: Target) -> None:
    controls = send(target, "guard")
    (row,) = controls.suites
    assert row.blocked == {"classifier": 1}
    assert row.answered == row.correct == 1
    assert controls.added_ms == [7.5, 12.5]
    assert controls.policy_digest == "abc123"


def test_a_baseline_is_asked_the_same_and_the_times_are_compared(target: Target) -> None:
    target.mode = "guard"
    suite = Suite("s", trigger_words=False, rows=[*ROWS, *ROWS])
    with serving() as other, httpx.Client(timeout=60, trust_env=False) as client:
        ends = [Endpoint(client, t.url.removesuffix("/v1"), "m") for t in (target, other)]
        compared = send_controls(ends[0], [suite], ends[1])
        assert target.seen == other.seen
    assert compared.baseline is not None
    assert compared.baseline.suites[0].answered == 4
    # Two were blocked; what was not answered has no time to compare.
    assert (compared.target.suites[0].answered, len(compared.added_ms)) == (2, 2)


def test_without_right_answers_nothing_is_graded(target: Target) -> None:
    (row,) = send(target, "answer", [Harmless("Hello")]).suites
    assert row.correct is None


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("hang", "timeout"), ("drip", "timeout"), ("flood", "dead_target"),
     ("throttle", "rate_limited"), ("broken", "server_error"), ("hang up", "dead_target")],
)  # fmt: skip
def test_a_target_past_hope_is_left_alone(target: Target, mode: str, kind: str) -> None:
    rows = ROWS * 5 if mode in ("hang", "drip") else ROWS * 20
    controls = send(target, mode, rows)
    (row,) = controls.suites
    assert controls.hopeless == kind
    assert row.errors == {kind: len(rows)}
    assert row.answered == 0
    assert len(target.seen) == 8


@pytest.mark.parametrize("profile", ["ci", "quick", "full"])
def test_the_suites_are_large_enough_for_the_default_limits(profile: str) -> None:
    """With no false positive at all, the gate that ships has to be able to pass."""
    from vauban.redteam.gate_policy import load_gate_policy
    from vauban.redteam.statistics import upper_bound

    policy = load_gate_policy()
    for suite in suites_of(profile):
        limit = policy.over_defence if suite.trigger_words else policy.false_positives
        assert len({row.text for row in suite.rows}) == len(suite.rows)
        assert upper_bound(0, len(suite.rows), policy.confidence, policy.interval) <= limit


def test_a_suite_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "Hi"}\n\n{"text": "Say x", "answer": "x"}\n')
    assert read_suite(path) == [Harmless("Hi"), Harmless("Say x", "x")]


@pytest.mark.parametrize("line", ["", "{}", "1", "[", '{"text": 1}', '{"text": "a", "answer": 2}'])
def test_a_wrong_suite(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ReportError):
        read_suite(path)
