from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter

from vauban.access.ratelimit import MAX_DEBT_S, BoundedStorage, RateLimiter, slowed
from vauban.errors import RateLimited
from vauban.types import Principal, PrincipalKind, RateLimit


def caller(
    name: str = "a",
    requests: int | None = None,
    tokens: int | None = None,
    kind: PrincipalKind = PrincipalKind.ANONYMOUS,
) -> Principal:
    return Principal(name, kind, frozenset(), RateLimit(requests, tokens))


def admitted(limiter: RateLimiter, principal: Principal) -> bool:
    try:
        limiter.admit(principal)
    except RateLimited:
        return False
    return True


def test_requests_per_minute(clock) -> None:
    limiter = RateLimiter(clock=clock)
    who = caller(requests=3)
    assert [admitted(limiter, who) for _ in range(5)] == [True, True, True, False, False]
    clock.advance(20)
    with pytest.raises(RateLimited) as caught:
        limiter.admit(who)
    assert caught.value.retry_after_s == 40
    assert "3 requests per minute" in caught.value.message
    clock.advance(40)
    assert admitted(limiter, who)


def test_no_ceiling_keeps_nothing(clock) -> None:
    limiter = RateLimiter(clock=clock, max_windows=1)
    for number in range(10):
        who = caller(str(number))
        limiter.charge(who, 10**9)
        assert admitted(limiter, who)


def test_tokens_are_charged_after_the_fact(clock) -> None:
    limiter = RateLimiter(clock=clock)
    who = caller(tokens=100)
    assert admitted(limiter, who)
    limiter.charge(who, 99)
    assert admitted(limiter, who)
    limiter.charge(who, 1)
    assert not admitted(limiter, who)
    clock.advance(60)
    assert admitted(limiter, who)


def test_an_overdraft_is_paid_at_the_permitted_rate(clock) -> None:
    limiter = RateLimiter(clock=clock)
    who = caller(tokens=100)
    limiter.charge(who, 500)
    with pytest.raises(RateLimited) as caught:
        limiter.admit(who)
    assert caught.value.retry_after_s == 300
    clock.advance(299)
    assert not admitted(limiter, who)
    clock.advance(1)
    assert admitted(limiter, who)


def test_debt_ends(clock) -> None:
    limiter = RateLimiter(clock=clock)
    who = caller(tokens=1)
    limiter.charge(who, 10**12)
    clock.advance(MAX_DEBT_S)
    assert admitted(limiter, who)


@pytest.mark.parametrize("tokens", [0, -1, -(10**9)])
def test_tokens_can_not_be_given_back(clock, tokens: int) -> None:
    limiter = RateLimiter(clock=clock)
    who = caller(tokens=10)
    limiter.charge(who, 10)
    limiter.charge(who, tokens)
    assert not admitted(limiter, who)


def test_callers_do_not_share_limits(clock) -> None:
    limiter = RateLimiter(clock=clock)
    assert admitted(limiter, caller("a", requests=1))
    assert not admitted(limiter, caller("a", requests=1))
    assert admitted(limiter, caller("b", requests=1))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 30)), max_size=60),
    st.integers(1, 5),
)
def test_never_more_than_the_limit_in_a_window(steps: list[tuple[int, float]], limit: int) -> None:
    now = 0.0
    limiter = RateLimiter(clock=lambda: now, max_windows=3)
    passed: dict[int, list[float]] = {}
    for name, wait in steps:
        now += wait
        if admitted(limiter, caller(str(name), requests=limit)):
            passed.setdefault(name, []).append(now)
    for times in passed.values():
        for start in times:
            # Two windows may touch inside any 60 s; never three, also with a full table.
            assert sum(start <= t < start + 60 for t in times) <= 2 * limit


def test_memory_is_bounded_and_running_windows_stay(
    clock, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = RateLimiter(clock=clock, max_windows=100)
    first = caller("first", requests=2)
    assert [admitted(limiter, first) for _ in range(3)] == [True, True, False]
    flood = [admitted(limiter, caller(f"f{n}", requests=2)) for n in range(5000)]
    assert sum(flood) == 99 + 2  # one each while there was room, then one shared window
    assert not admitted(limiter, first)
    storage = limiter._requests[PrincipalKind.ANONYMOUS]._storage
    assert len(storage) == 100
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    clock.advance(61)
    assert admitted(limiter, first)
    assert all(admitted(limiter, caller(f"g{n}", requests=2)) for n in range(99))
    assert len(storage) == 100


def test_a_flood_of_one_kind_leaves_the_others_alone(clock) -> None:
    limiter = RateLimiter(clock=clock, max_windows=10)
    for number in range(100):
        admitted(limiter, caller(f"f{number}", requests=1))
    key = caller("key:a", requests=1, kind=PrincipalKind.KEY)
    assert admitted(limiter, key)
    assert not admitted(limiter, key)


def test_token_windows_are_bounded_too(clock) -> None:
    limiter = RateLimiter(clock=clock, max_windows=10)
    for number in range(100):
        limiter.charge(caller(f"f{number}", tokens=5), 5)
    assert len(limiter._tokens[PrincipalKind.ANONYMOUS]._storage) == 10
    assert not admitted(limiter, caller("f0", tokens=5))
    assert not admitted(limiter, caller("unseen", tokens=5))


def test_counting_is_exact_across_threads(clock) -> None:
    limiter = RateLimiter(clock=clock)
    who = caller(requests=100)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: admitted(limiter, who), range(400)))
    assert sum(results) == 100


def test_the_storage_serves_the_library_as_its_own_does(clock) -> None:
    storage = BoundedStorage(max_windows=10, clock=clock)
    limiter = FixedWindowRateLimiter(storage)
    item = RateLimitItemPerMinute(2)
    assert limiter.get_window_stats(item, "a").remaining == 2
    assert limiter.hit(item, "a")
    assert limiter.get_window_stats(item, "a") == (clock.now + 60, 1)
    limiter.clear(item, "a")
    assert limiter.get_window_stats(item, "a").remaining == 2
    assert limiter.hit(item, "b", cost=2)
    assert not limiter.test(item, "b")
    assert storage.reset() == 1
    assert limiter.test(item, "b")
    assert storage.check()


@given(
    requests=st.none() | st.integers(1, 10**6), tokens=st.none() | st.integers(1, 10**9),
    factor=st.floats(0.001, 1.0), otherwise=st.integers(1, 10**6),
)  # fmt: skip
def test_slowed_is_never_more_and_never_nothing(
    requests: int | None, tokens: int | None, factor: float, otherwise: int
) -> None:
    limit = slowed(RateLimit(requests, tokens), factor, otherwise)
    assert limit.requests_per_min is not None
    assert 1 <= limit.requests_per_min <= (otherwise if requests is None else requests)
    assert (limit.tokens_per_min is None) is (tokens is None)
    assert tokens is None or 1 <= limit.tokens_per_min <= tokens
