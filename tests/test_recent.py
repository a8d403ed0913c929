"""What is kept in memory to be shown: bounded, newest first, and no text unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vauban.policy import AuditPolicy, OutputPolicy
from vauban.recent import Excerpts, RecentEvents, RecentQueries
from vauban.telemetry import AuditLog
from vauban.types import Evidence, Level, Origin, Segment

SECRET = "AKIAIOSFODNN7EXAMPLX"


def found(score: float, at: tuple[float, float] | None = (0.1, -0.2)) -> Evidence:
    return Evidence(score, Level.CLEAR, 1, at=at)


def test_the_newest_events_and_no_more() -> None:
    events = RecentEvents(3, lambda: 5.0)
    for number in range(5):
        events.add({"event": "decision" if number % 2 else "refused", "n": number})
    assert [event["n"] for event in events.newest(10)] == [4, 3, 2]
    assert [event["n"] for event in events.newest(1)] == [4]
    assert [event["n"] for event in events.newest(10, event="decision", action="")] == [3]
    assert events.newest(10, nothing="x") == []
    assert (len(events), events.count, events.max_events) == (3, 5, 3)
    assert events.newest(1)[0] | {"number": 5, "time": 5.0} == events.newest(1)[0]
    none = RecentEvents(0)
    none.add({})
    assert none.newest(10) == []


def test_events_are_those_of_the_audit_log_also_where_it_is_off(tmp_path: Path) -> None:
    for place in (tmp_path / "audit.log", "off"):
        recent = RecentEvents(10)
        AuditLog(AuditPolicy(log=place), recent).refused(code="x", route="/a")
        (event,) = recent.newest(10)
        assert (event["event"], event["code"]) == ("refused", "x")
    (line,) = (tmp_path / "audit.log").read_text().splitlines()
    assert {"event", "code", "route", "timestamp"} == set(json.loads(line))


@given(st.lists(st.sampled_from("abcdefg"), max_size=200))
def test_queries_are_bounded_and_the_silent_go_first(users: list[str]) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    recent = RecentQueries(3, 16, clock)
    for number, user in enumerate(users):
        recent.add(user, found(number / 1000))
    last = list(dict.fromkeys(reversed(users)))[:3]
    assert [user for user, _, _ in recent.latest(10)] == last
    for user, kept, point in recent.latest(10):
        points = recent.of(user)
        assert len(points) == kept <= 16
        assert points[-1] == point
        asked = [n / 1000 for n, other in enumerate(users) if other == user]
        assert [p.score for p in points] == asked[len(asked) - kept :]


def test_a_user_who_is_forgotten() -> None:
    recent = RecentQueries(3, 16)
    recent.add("a", found(0.5))
    recent.add("b", found(0.5, at=None))
    assert recent.of("b") == []
    recent.forget("a")
    recent.forget("nobody")
    assert recent.of("a") == []
    assert RecentQueries(0, 16).latest(1) == []


def test_no_text_is_kept_unless_it_is_asked_for() -> None:
    segments = [Segment("rules", Origin.OPERATOR), Segment("hello there", Origin.USER)]
    assert Excerpts(0, OutputPolicy()).of(segments) is None
    excerpts = Excerpts(5, OutputPolicy())
    assert excerpts.of(segments) == {"text": "there", "of_chars": 11}
    assert excerpts.of(segments[:1]) is None
    assert excerpts.of([]) is None


def test_no_credential_is_in_an_excerpt_whatever_answers_may_have() -> None:
    off = OutputPolicy(secrets="off", entropy="off", control="off", canary="off")
    for policy in (OutputPolicy(), off):
        for text in (SECRET, f"my key is {SECRET} ok", f"{'x ' * 9000}{SECRET}"):
            kept = Excerpts(2_000, policy).of([Segment(text, Origin.USER)])
            assert kept is not None
            assert SECRET not in kept["text"]
            assert SECRET[4:] not in kept["text"]
            assert kept["of_chars"] == len(text)
    cut = SECRET + " " * 16_380  # what is read begins inside of it
    kept = Excerpts(2_000, OutputPolicy()).of([Segment(cut, Origin.USER)])
    assert kept is not None
    assert kept["text"].strip() == ""
