"""Sums of several processes: nothing is lost, nothing counts twice, nobody waits."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_server import RedisServer
from vauban.policy_standing import StatePolicy
from vauban.state.exchange import Exchange
from vauban.state.store import open_store

NUMBERS = st.integers(-1000, 1000).map(lambda n: n / 8)
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from("ab"), NUMBERS, st.booleans()), max_size=30
)


@pytest.fixture
def policy(shared_policy: Callable[..., StatePolicy]) -> StatePolicy:
    return shared_policy()


def joined(policy: StatePolicy, processes: int = 2) -> list[Exchange]:
    return [Exchange(open_store(policy), policy) for _ in range(processes)]


def drop(policy: StatePolicy, *keys: str) -> None:
    store = open_store(policy)
    store.open()
    store.drop_counts(keys)
    store.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_all_see_what_all_have_added(policy: StatePolicy, steps: list) -> None:
    exchanges = joined(policy, 3)
    keys = {key: f"{key}-{secrets.token_hex(8)}" for key in "ab"}
    totals = {"a": 0.0, "b": 0.0}
    own = [dict(totals) for _ in exchanges]
    for process, key, number, refresh in steps:
        exchanges[process].add(keys[key], {"n": number})
        totals[key] += number
        own[process][key] += number
        if refresh:
            assert exchanges[process].refresh()
    for exchange in [*exchanges, *exchanges]:
        for key in keys.values():
            exchange.add(key, {})
        assert exchange.refresh()
    for exchange in exchanges:
        for key, total in totals.items():
            assert exchange.sums(keys[key]).get("n", 0.0) == total
    drop(policy, *keys.values())


def test_what_was_added_here_counts_here_at_once(policy: StatePolicy) -> None:
    one, two = joined(policy)
    one.add("k", {"n": 2.0})
    assert one.sums("k") == {"n": 2.0}
    assert two.sums("k") == {}
    assert one.refresh()
    two.add("k", {"n": 1.0})
    assert two.sums("k") == {"n": 1.0}
    assert two.refresh()
    assert two.sums("k") == {"n": 3.0}


def test_what_the_store_forgets_is_forgotten(policy: StatePolicy) -> None:
    one, two = joined(policy)
    for exchange in (one, two):
        exchange.add("k", {"n": 5.0})
        assert exchange.refresh()
    drop(policy, "k")
    for exchange in (one, two):
        exchange.add("k", {})
        assert exchange.refresh()
        assert exchange.sums("k") == {}


def test_who_leaves_finds_it_again(policy: StatePolicy) -> None:
    one, _ = joined(policy)
    one.add("k", {"n": 5.0})
    assert one.refresh()
    one.leave("k")
    assert one.sums("k") == {}
    one.add("k", {"n": 1.0})
    assert one.refresh()
    assert one.sums("k") == {"n": 6.0}


@pytest.mark.parametrize("name", ["", "x" * 10_000, "\udcff", "a\0b"])
def test_a_name_that_no_store_takes_stops_nobody(policy: StatePolicy, name: str) -> None:
    one, two = joined(policy)
    for key in (name, "k"):
        one.add(key, {"n": 5.0})
    one.add("k", {"n": float("nan")})
    assert one.refresh()
    assert one.sums(name) == {"n": 5.0}
    two.add("k", {})
    assert two.refresh()
    assert two.sums("k") == {"n": 5.0}
    one.leave(name)
    assert one.sums(name) == {}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    made = RedisServer()
    yield made
    made.remove()


def test_a_lost_store_loses_nothing_here_and_stops_nobody(server: RedisServer) -> None:
    policy = StatePolicy(store=server.url, timeout_ms=200)
    one, two = joined(policy)
    one.add("k", {"n": 1.0})
    assert one.refresh()
    server.kill()
    one.add("k", {"n": 2.0})
    assert not one.refresh()
    assert not one.refresh()
    assert one.sums("k") == {"n": 3.0}
    server.start()  # without its data
    one.add("k", {"n": 4.0})
    assert one.refresh()
    assert two.sums("k") == {}
    two.add("k", {})
    assert two.refresh()
    assert two.sums("k") == one.sums("k") == {"n": 4.0}


def test_a_store_that_is_only_slow_counts_nothing_twice(server: RedisServer) -> None:
    policy = StatePolicy(store=server.url, timeout_ms=200)
    one, two = joined(policy)
    one.add("k", {"n": 1.0})
    assert one.refresh()
    server.freeze()
    one.add("k", {"n": 2.0})
    for _ in range(3):
        assert not one.refresh()
    one.add("k", {"n": 4.0})
    server.thaw()
    assert one.refresh()
    two.add("k", {})
    assert two.refresh()
    assert two.sums("k") == one.sums("k")
    # What was sent while nobody answered was taken once, or not at all.
    assert one.sums("k")["n"] in (5.0, 7.0)


def test_it_keeps_up_by_itself_from_many_threads(policy: StatePolicy) -> None:
    policy = policy.model_copy(update={"refresh_ms": 20})
    one, two = joined(policy)
    one.open()
    two.open()

    def work(exchange: Exchange) -> None:
        for _ in range(200):
            exchange.add("k", {"n": 1.0})

    threads = [threading.Thread(target=work, args=(e,)) for e in (one, two, one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    two.close()  # sends what is left
    one.close()
    (last,) = joined(policy, 1)
    last.add("k", {})
    assert last.refresh()
    assert last.sums("k") == {"n": 800.0}
