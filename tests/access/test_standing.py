"""The rules of levels: evidence never lowers, time always does, an operator decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.standing import (
    DETECTOR,
    RESET_KEPT_S,
    Decided,
    Found,
    Record,
    Rules,
    decode,
    encode,
)
from vauban.errors import StateUnavailable
from vauban.policy_standing import ResponsePolicy
from vauban.types import Evidence, Level

POLICY = ResponsePolicy(
    flagged_s=40, slowed_s=30, degraded_s=20, banned_s=10, service_ceiling="slowed"
)
RULES = Rules(POLICY)
WHO = "key:abcabcabcabc"
LEVELS = st.sampled_from(list(Level))
TIMES = st.floats(0, 500)
EVIDENCE = st.builds(
    Evidence, score=st.floats(), level=LEVELS, queries=st.integers(0, 10**9),
    signals=st.lists(st.tuples(st.text(max_size=200), st.floats()), max_size=80).map(tuple),
    campaign=st.text(max_size=300), proposed=st.text(max_size=300),
)  # fmt: skip
ENDS = st.none() | TIMES
FOUND = st.builds(
    lambda level, began, later, until, evidence: Found(
        level, began, began + later, None if level is Level.HELD else until, evidence
    ),
    st.sampled_from(list(Level)[1:]), TIMES, TIMES, TIMES, st.none(),
)  # fmt: skip
DECIDED = st.builds(
    Decided, st.sampled_from(list(Level)[1:]), TIMES, ENDS, st.just("key:op"), st.text(max_size=9)
)
RECORDS = st.builds(
    Record, st.just(WHO), st.none() | FOUND, st.none() | DECIDED, st.just(0.0) | TIMES
)


def evidence(level: Level, score: float = 0.9) -> Evidence:
    return Evidence(score, level, 100, (("novelty", 0.5),), "c1")


def observe(record: Record, level: Level, now: float, *, service: bool = False) -> Record:
    return RULES.observe(record, evidence(level), service=service, began_at=None, now=now)


def level_at(record: Record, now: float) -> Level:
    return RULES.standing(record, now).level


@given(record=RECORDS, found=EVIDENCE, now=TIMES, service=st.booleans())
def test_more_evidence_never_lowers(
    record: Record, found: Evidence, now: float, service: bool
) -> None:
    after = RULES.observe(record, found, service=service, began_at=None, now=now)
    assert level_at(after, now) >= level_at(record, now)
    before_end, after_end = (RULES.standing(r, now).until for r in (record, after))
    if level_at(after, now) is level_at(record, now) and before_end is not None:
        assert after_end is not None
        assert after_end >= before_end


@given(record=RECORDS, first=TIMES, later=TIMES)
def test_time_never_raises(record: Record, first: float, later: float) -> None:
    assert level_at(record, first + later) <= level_at(record, first)


@given(record=RECORDS, now=TIMES)
def test_everything_ends_but_what_an_operator_must_decide(record: Record, now: float) -> None:
    standing = RULES.standing(record, now + 10_000)
    assert standing.level is Level.CLEAR or standing.until is None


@given(record=RECORDS, first=TIMES, later=TIMES)
def test_settling_twice_is_settling_once(record: Record, first: float, later: float) -> None:
    between = RULES.settle(record, first)
    assert RULES.settle(between, first) is between
    assert RULES.settle(between, first + later) == RULES.settle(record, first + later)


@given(record=RECORDS, level=LEVELS, now=TIMES, seconds=st.none() | st.floats(1, 99))
def test_what_an_operator_decides_is_so(
    record: Record, level: Level, now: float, seconds: float | None
) -> None:
    after = RULES.decide(record, level, seconds=seconds, by="key:op", reason="", now=now)
    assert level_at(after, now) is level


@given(record=RECORDS, found=EVIDENCE, now=TIMES, later=st.floats(0.001, 50))
def test_forgiven_evidence_does_not_count_again(
    record: Record, found: Evidence, now: float, later: float
) -> None:
    forgiven = RULES.decide(record, Level.CLEAR, seconds=None, by="key:op", reason="", now=now)
    again = RULES.observe(forgiven, found, service=False, began_at=now - later, now=now + later)
    assert level_at(again, now + later) is Level.CLEAR
    newer = RULES.observe(forgiven, found, service=False, began_at=now + later, now=now + later)
    assert level_at(newer, now + later) is found.level


@given(record=RECORDS, now=TIMES)
def test_forgetting_lifts_no_ban_and_keeps_no_word(record: Record, now: float) -> None:
    before, after = RULES.standing(record, now), RULES.forget(record, now)
    kept = RULES.standing(after, now)
    assert kept.level is (before.level if before.level >= Level.HELD else Level.CLEAR)
    assert (kept.evidence, kept.reason) == (None, "")
    if kept.level:
        assert kept.until == before.until


@given(one=RECORDS, other=RECORDS, now=TIMES)
def test_two_servers_come_to_the_same_record(one: Record, other: Record, now: float) -> None:
    joined = RULES.join(one, other, now)
    assert level_at(joined, now) is level_at(RULES.join(other, one, now), now)
    assert RULES.join(joined, joined, now) == joined
    assert level_at(RULES.join(joined, one, now), now) is level_at(joined, now)


@given(record=RECORDS, found=EVIDENCE, now=TIMES)
def test_what_was_forgiven_elsewhere_stays_forgiven(
    record: Record, found: Evidence, now: float
) -> None:
    """A server that has not heard of it yet goes on finding; joined, that is gone."""
    here = RULES.observe(record, found, service=False, began_at=None, now=now)
    there = RULES.decide(record, Level.CLEAR, seconds=None, by="key:op", reason="", now=now + 1)
    past = record.found is None or record.found.began <= now
    if past and record.decided is None and record.reset_at <= now:
        assert level_at(RULES.join(here, there, now + 1), now + 1) is Level.CLEAR


@given(record=RECORDS, found=EVIDENCE, now=TIMES)
def test_any_record_survives_being_written(record: Record, found: Evidence, now: float) -> None:
    full = RULES.observe(record, found, service=False, began_at=None, now=now)
    assert decode(encode(full)) == full
    assert len(encode(full)) < 60_000


@given(junk=st.binary(max_size=60) | st.sampled_from([b"{}", b"null", b'{"principal": 1}']))
def test_what_is_no_record_is_told(junk: bytes) -> None:
    with pytest.raises(StateUnavailable):
        decode(junk)


def test_a_record_of_a_later_version_may_hold_more() -> None:
    value = encode(Record(WHO, reset_at=5.0))[:-1] + b',"new":1}'
    assert decode(value) == Record(WHO, reset_at=5.0)


def test_levels_fall_one_after_the_other() -> None:
    record = observe(Record(WHO), Level.BANNED, now=100)
    seen = [level_at(record, now) for now in (100, 109, 110, 129, 130, 159, 160, 199, 200)]
    assert seen == [
        Level.BANNED, Level.BANNED, Level.DEGRADED, Level.DEGRADED, Level.SLOWED, Level.SLOWED,
        Level.FLAGGED, Level.FLAGGED, Level.CLEAR,
    ]  # fmt: skip
    standing = RULES.standing(record, 140)
    assert (standing.since, standing.until, standing.by) == (130, 160, DETECTOR)
    assert standing.evidence == evidence(Level.BANNED)


def test_who_is_held_waits_for_an_operator() -> None:
    record = observe(Record(WHO), Level.HELD, now=0)
    assert RULES.standing(record, 1e9).level is Level.HELD
    assert RULES.standing(record, 1e9).until is None


def test_going_on_prolongs_and_seldom_writes() -> None:
    record = observe(Record(WHO), Level.SLOWED, now=0)
    assert observe(record, Level.SLOWED, now=1) is record
    assert observe(record, Level.FLAGGED, now=20) is record
    longer = observe(record, Level.SLOWED, now=20)
    assert RULES.standing(longer, 45).level is Level.SLOWED
    assert RULES.standing(longer, 45).since == 0


@pytest.mark.parametrize("news", [{"campaign": "c2" * 99}, {"proposed": "service"}])
def test_news_is_written_at_once_and_only_once(news: dict[str, str]) -> None:
    """An operator must not wait for the level to change to hear of a campaign or a proposal."""
    nothing = replace(evidence(Level.FLAGGED), campaign="")
    record = RULES.observe(Record(WHO), nothing, service=False, began_at=None, now=0)
    told = replace(nothing, **news)
    found = RULES.observe(record, told, service=False, began_at=None, now=1)
    assert found.found is not None
    assert found.found.evidence is not None
    for name, value in news.items():
        assert getattr(found.found.evidence, name) == value[:128]
    assert RULES.observe(found, told, service=False, began_at=None, now=2) is found
    assert level_at(found, 2) is Level.FLAGGED


def test_servers_that_see_a_caller_differently_dont_write_in_turns() -> None:
    rules = Rules(ResponsePolicy())
    says = [
        replace(evidence(Level.FLAGGED), campaign="one", proposed="service"),
        replace(evidence(Level.FLAGGED), campaign="two"),
        replace(evidence(Level.FLAGGED), campaign=""),
        replace(evidence(Level.FLAGGED), campaign="", proposed="service"),
    ]
    record, written = Record(WHO), []
    for query in range(600):  # one each second
        told = says[query % len(says)]
        after = rules.observe(record, told, service=False, began_at=None, now=query)
        if after is not record:
            written.append(query)
            assert after.found is not None
            assert after.found.evidence is not None
            assert after.found.evidence.proposed == "service"
            assert after.found.evidence.campaign == told.campaign
        record = after
    assert 2 < len(written) <= 600 / 60 + 1  # of another campaign it hears, now and then


def test_a_proposal_lowers_nothing() -> None:
    record = observe(Record(WHO), Level.SLOWED, now=0)
    told = replace(evidence(Level.FLAGGED), proposed="service")
    assert RULES.observe(record, told, service=False, began_at=None, now=1) is record


def test_ceilings() -> None:
    assert level_at(observe(Record(WHO), Level.BANNED, 0, service=True), 0) is Level.SLOWED
    gentle = Rules(POLICY.model_copy(update={"person_ceiling": "degraded"}))
    found = gentle.observe(Record(WHO), evidence(Level.BANNED), service=False, began_at=None, now=0)
    assert gentle.standing(found, 0).level is Level.DEGRADED


def test_an_operators_ban_ends_at_its_time_and_what_was_found_counts_then() -> None:
    record = observe(Record(WHO), Level.SLOWED, now=0)
    banned = RULES.decide(record, Level.BANNED, seconds=5, by="key:op", reason="spam", now=0)
    standing = RULES.standing(banned, 4)
    assert (standing.level, standing.by, standing.reason) == (Level.BANNED, "key:op", "spam")
    assert level_at(banned, 5) is Level.SLOWED
    alone = RULES.decide(Record(WHO), Level.BANNED, seconds=5, by="key:op", reason="", now=0)
    assert level_at(alone, 5) is Level.CLEAR


def test_a_decision_below_what_was_found_forgives_it() -> None:
    record = observe(Record(WHO), Level.DEGRADED, now=0)
    eased = RULES.decide(record, Level.SLOWED, seconds=None, by="key:op", reason="", now=1)
    assert level_at(eased, 1) is Level.SLOWED
    assert eased.reset_at == 1
    assert level_at(observe(eased, Level.DEGRADED, now=2), 2) is Level.DEGRADED


def test_a_score_that_is_no_number_is_the_worst() -> None:
    record = RULES.observe(
        Record(WHO), evidence(Level.FLAGGED, math.nan), service=False, began_at=None, now=0
    )
    assert record.found is not None
    assert record.found.evidence is not None
    assert record.found.evidence.score == 1.0


def test_nothing_is_kept_of_nobody() -> None:
    assert RULES.is_void(Record(WHO), 0)
    forgiven = Record(WHO, reset_at=100)
    assert not RULES.is_void(forgiven, 101)
    assert RULES.is_void(forgiven, 100 + RESET_KEPT_S)
    assert RULES.is_void(replace(observe(Record(WHO), Level.FLAGGED, 0)), 10_000)
