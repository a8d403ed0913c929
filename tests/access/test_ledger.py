"""The ledger over every store, on one server and on two."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from redis_server import RedisServer
from vauban.access.ledger import Ledger
from vauban.access.mirror import RELOAD_AFTER_S, SWEEP_EVERY_S
from vauban.access.standing import DETECTOR, RESET_KEPT_S, Record, Rules, Transition
from vauban.errors import ConfigError, StateUnavailable
from vauban.policy_standing import ResponsePolicy, StatePolicy
from vauban.state.store import Store, open_store
from vauban.types import Evidence, Level, Principal, PrincipalKind

RESPONSE = ResponsePolicy(flagged_s=400, slowed_s=300, degraded_s=200, banned_s=100)
OPERATOR = "key:operator0000"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Server:
    """One API server's ledger. Tests call `refresh`; nothing happens in the background."""

    def __init__(self, policy: StatePolicy, clock: Clock, store: Store | None = None) -> None:
        self.policy = policy
        self.store = store or open_store(policy)
        self.told: list[Transition] = []
        self.levels: dict[Level, int] = {}
        self.resets: list[str] = []
        self.ledger = Ledger(
            self.store, policy, RESPONSE, on_transition=self.told.append,
            on_levels=self.levels.update, clock=clock, monotonic=clock,
        )  # fmt: skip
        self.ledger.on_reset(self.resets.append)
        self.refresh()

    def refresh(self) -> bool:
        return self.ledger.refresh()

    def level(self, who: str) -> Level:
        return self.ledger.standing(who).level

    def steps(self) -> list[tuple[str, Level, Level, str]]:
        return [(t.action, t.before, t.after, t.by) for t in self.told]


def caller(who: str, *, service: bool = False) -> Principal:
    return Principal(who, PrincipalKind.KEY, service=service)


def evidence(level: Level) -> Evidence:
    return Evidence(0.9, level, 100, (("novelty", 0.5),), "c1")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(state_policy: Callable[..., StatePolicy], clock: Clock) -> Iterator[Server]:
    made = Server(state_policy(), clock)
    yield made
    made.ledger.close()


@pytest.fixture
def pair(shared_policy: Callable[..., StatePolicy], clock: Clock) -> Iterator[list[Server]]:
    made = [Server(shared_policy(), clock) for _ in range(2)]
    yield made
    for one in made:
        one.ledger.close()


# -- the model ----------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Two servers on one store beside plain records; each step, everybody hears of it."""

    make: Callable[[Clock], list[Server]]
    who = st.sampled_from(["key:aaaaaaaaaaaa", "anon:::/64", "jwt:0"])
    level = st.sampled_from(list(Level))

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.servers = self.make(self.clock)
        self.rules = Rules(RESPONSE)
        self.records: dict[str, Record] = {}

    def teardown(self) -> None:
        for server in self.servers:
            server.ledger.close()

    def _one(self, n: int) -> Server:
        return self.servers[n % len(self.servers)]

    def _set(self, who: str, change: Callable[[Record], Record]) -> None:
        self.records[who] = change(self.records.get(who, Record(who)))
        for server in self.servers * 2:
            assert server.refresh()

    @rule(who=who, level=level, n=st.integers(0, 1), service=st.booleans())
    def observe(self, who: str, level: Level, n: int, service: bool) -> None:
        self._one(n).ledger.observe(caller(who, service=service), evidence(level))
        now = self.clock.now
        self._set(who, lambda r: self.rules.observe(
            r, evidence(level), service=service, began_at=None, now=now))  # fmt: skip

    @rule(who=who, level=level, n=st.integers(0, 1), seconds=st.none() | st.integers(1, 500))
    def decide(self, who: str, level: Level, n: int, seconds: int | None) -> None:
        self._one(n).ledger.set_level(who, level, by=OPERATOR, reason="r", seconds=seconds)
        now = self.clock.now
        self._set(who, lambda r: self.rules.decide(
            r, level, seconds=seconds, by=OPERATOR, reason="r", now=now))  # fmt: skip

    @rule(who=who, n=st.integers(0, 1))
    def forget(self, who: str, n: int) -> None:
        self._one(n).ledger.forget(who, by=OPERATOR)
        self._set(who, lambda r: self.rules.forget(r, self.clock.now))

    @rule(seconds=st.sampled_from([1.0, 50.0, 150.0, 1000.0, 5000.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        for server in self.servers:
            assert server.refresh()

    @invariant()
    def every_server_treats_everybody_as_the_rules_say(self) -> None:
        for who, record in self.records.items():
            wanted = self.rules.standing(record, self.clock.now)
            for server in self.servers:
                assert server.ledger.standing(who) == wanted
        listed = {s.principal: s for s in self.servers[0].ledger.users(limit=9)}
        settled = {w: self.rules.standing(r, self.clock.now) for w, r in self.records.items()}
        assert listed == {w: s for w, s in settled.items() if s.level}


def test_a_ledger_is_its_rules(state_policy: Callable[..., StatePolicy], tmp_path: Any) -> None:
    base = state_policy()

    def make(clock: Clock) -> list[Server]:
        drawn = secrets.token_hex(8)
        url = f"sqlite://{tmp_path}/{drawn}.db" if "sqlite" in base.store else base.store
        policy = base.model_copy(update={"store": url, "prefix": drawn})
        return [Server(policy, clock) for _ in range(1 if url == "memory" else 2)]

    machine = type("Made", (Machine,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=25))


# -- one server ---------------------------------------------------------------------------------


def test_nobody_is_known_at_first(server: Server) -> None:
    assert server.level("key:a") is Level.CLEAR
    assert server.ledger.users() == []
    assert server.ledger.explain("key:a") == Record("key:a")


def test_evidence_counts_at_once_and_is_written_soon(server: Server, clock: Clock) -> None:
    standing = server.ledger.observe(caller("key:a"), evidence(Level.DEGRADED))
    assert standing.level is server.level("key:a") is Level.DEGRADED
    assert server.told == []
    server.refresh()
    assert server.steps() == [("observe", Level.CLEAR, Level.DEGRADED, DETECTOR)]
    server.refresh()
    assert len(server.told) == 1


def test_a_proposal_is_told_once(server: Server, clock: Clock) -> None:
    """Also to a server that heard of the level before, and again only when it was taken back, for
    which it takes a level that is prolonged."""
    said = ("", 1), ("service", 1), ("", 1), ("service", 41), ("", 1), ("service", 1)
    for proposed, pause_s in said:
        told = replace(evidence(Level.FLAGGED), proposed=proposed)
        assert server.ledger.observe(caller("key:a"), told).level is Level.FLAGGED
        server.refresh()
        clock.now += pause_s
    assert server.steps() == [
        ("observe", Level.CLEAR, Level.FLAGGED, DETECTOR),
        ("propose", Level.FLAGGED, Level.FLAGGED, DETECTOR),
        ("propose", Level.FLAGGED, Level.FLAGGED, DETECTOR),
    ]
    (user,) = server.ledger.users()
    assert user.evidence is not None
    assert user.evidence.proposed == "service"


def test_the_accounts_of_a_campaign_can_be_listed(server: Server) -> None:
    for name, campaign in (("key:a", "one"), ("key:b", "two"), ("key:c", "one")):
        told = replace(evidence(Level.SLOWED), campaign=campaign)
        server.ledger.observe(caller(name), told)
    server.ledger.ban("key:d", by=OPERATOR, reason="r")
    assert [s.principal for s in server.ledger.users(campaign="one")] == ["key:a", "key:c"]
    assert server.ledger.users(Level.BANNED, campaign="one") == []
    assert server.ledger.users(campaign="none") == []


def test_every_step_down_is_told_once(server: Server, clock: Clock) -> None:
    server.ledger.ban("key:a", by=OPERATOR, reason="r", seconds=10)
    clock.now += 11
    server.refresh()
    clock.now += SWEEP_EVERY_S
    server.refresh()
    assert server.steps() == [
        ("ban", Level.CLEAR, Level.BANNED, OPERATOR),
        ("expire", Level.BANNED, Level.CLEAR, "time"),
    ]
    assert server.ledger.users() == []


def test_an_operators_act_is_told_even_if_it_changes_no_level(server: Server) -> None:
    for _ in range(2):
        server.ledger.ban("key:a", by=OPERATOR, reason="r")
    server.ledger.unban("key:b", by=OPERATOR, reason="r")
    assert [(t.action, t.principal) for t in server.told] == [
        ("ban", "key:a"), ("ban", "key:a"), ("unban", "key:b"),
    ]  # fmt: skip


def test_forgiving_and_forgetting_tell_the_detector(server: Server) -> None:
    server.store.add_counts([("key:a", {"n": 1.0}), ("key:b", {"n": 1.0})])
    server.ledger.ban("key:a", by=OPERATOR, reason="r")
    server.ledger.unban("key:a", by=OPERATOR, reason="r")
    assert server.resets == ["key:a"]
    assert server.store.add_counts([("key:a", {})]) == [{}]
    server.ledger.forget("key:b", by=OPERATOR)
    assert server.resets == ["key:a", "key:b"]
    assert server.store.add_counts([("key:b", {})]) == [{}]


def test_an_erased_user_leaves_the_store(server: Server, clock: Clock) -> None:
    server.ledger.observe(caller("key:a"), evidence(Level.SLOWED))
    server.refresh()
    server.ledger.forget("key:a", by=OPERATOR)
    ((name, value),) = server.store.changes(0).records
    assert name == "key:a"
    assert b"0.9" not in value
    assert b"novelty" not in value
    clock.now += RESET_KEPT_S + SWEEP_EVERY_S
    server.refresh()
    assert server.store.changes(0).records == ()


def test_levels_are_counted(server: Server, clock: Clock) -> None:
    for n in range(3):
        server.ledger.observe(caller(f"key:{n}"), evidence(Level.SLOWED))
    server.ledger.ban("key:9", by=OPERATOR, reason="r")
    clock.now += SWEEP_EVERY_S
    server.refresh()
    assert (server.levels[Level.SLOWED], server.levels[Level.BANNED]) == (3, 1)


def test_users_come_in_pages(server: Server) -> None:
    names = [f"key:{n:02}" for n in range(25)]
    for n, name in enumerate(reversed(names)):
        server.ledger.observe(caller(name), evidence(Level.SLOWED if n % 2 else Level.FLAGGED))
    first = server.ledger.users(limit=10)
    assert [s.principal for s in first] == names[:10]
    second = server.ledger.users(limit=10, after=first[-1].principal)
    assert [s.principal for s in second] == names[10:20]
    slowed = server.ledger.users(Level.SLOWED)
    assert len(slowed) == 12
    assert {s.level for s in slowed} == {Level.SLOWED}


def test_one_user_is_nothing_to_another(server: Server) -> None:
    server.ledger.observe(caller("key:a"), evidence(Level.BANNED))
    assert server.level("key:a") is Level.BANNED
    assert server.level("key:b") is Level.CLEAR


# -- bounds -------------------------------------------------------------------------------------


def test_room_is_made_by_forgetting_the_least(
    state_policy: Callable[..., StatePolicy], clock: Clock
) -> None:
    server = Server(state_policy(max_users=10), clock)
    for n in range(6):
        server.ledger.ban(f"key:ban{n}", by=OPERATOR, reason="r")
        server.ledger.observe(caller(f"key:held{n}"), evidence(Level.HELD))
    for n in range(6):
        server.ledger.observe(caller(f"key:flag{n}"), evidence(Level.FLAGGED))
    clock.now += SWEEP_EVERY_S
    server.refresh()
    kept = {s.principal for s in server.ledger.users()}
    assert kept == {f"key:{kind}{n}" for kind in ("ban", "held") for n in range(6)}
    again = Server(server.policy, clock, server.store)
    assert {s.principal for s in again.ledger.users()} == kept


def test_making_room_forgets_nobody_whom_another_server_has_banned(
    shared_policy: Callable[..., StatePolicy], clock: Clock
) -> None:
    one, other = (Server(shared_policy(max_users=2), clock) for _ in range(2))
    for n in range(4):
        one.ledger.observe(caller(f"key:{n}"), evidence(Level.FLAGGED))
    one.ledger.refresh()
    clock.now += SWEEP_EVERY_S
    fetch = one.store.changes
    one.store.changes = lambda since: (  # type: ignore[method-assign]
        fetch(since), other.ledger.ban("key:0", by=OPERATOR, reason="r")
    )[0]  # fmt: skip
    one.refresh()
    assert one.level("key:0") is Level.BANNED
    assert Server(one.policy, clock).level("key:0") is Level.BANNED


def test_what_a_detector_finds_is_bounded_between_refreshes(clock: Clock) -> None:
    server = Server(StatePolicy(max_users=10), clock)
    for n in range(100):
        server.ledger.observe(caller(f"key:{n:03}"), evidence(Level.BANNED))
    assert len(server.ledger.users()) == 20
    server.ledger.ban("key:999", by=OPERATOR, reason="an operator finds room")
    assert server.level("key:999") is Level.BANNED


# -- two servers --------------------------------------------------------------------------------


def test_a_ban_holds_on_the_other_server(pair: list[Server]) -> None:
    one, other = pair
    one.ledger.ban("key:a", by=OPERATOR, reason="r")
    assert other.level("key:a") is Level.CLEAR
    other.refresh()
    assert other.ledger.standing("key:a") == one.ledger.standing("key:a")
    other.ledger.unban("key:a", by=OPERATOR, reason="r")
    one.refresh()
    assert one.level("key:a") is Level.CLEAR
    assert one.resets == ["key:a"]


def test_the_worse_of_what_two_found_counts_on_both(pair: list[Server]) -> None:
    one, other = pair
    one.ledger.observe(caller("key:a"), evidence(Level.FLAGGED))
    other.ledger.observe(caller("key:a"), evidence(Level.DEGRADED))
    for server in (one, other, one):
        server.refresh()
    assert one.level("key:a") is other.level("key:a") is Level.DEGRADED
    assert len(one.told) + len(other.told) in (1, 2)


def test_what_was_forgiven_elsewhere_meanwhile_is_not_written_back(
    pair: list[Server], clock: Clock
) -> None:
    one, other = pair
    one.ledger.observe(caller("key:a"), evidence(Level.SLOWED))
    one.refresh()
    other.refresh()
    clock.now += 100
    one.ledger.observe(caller("key:a"), evidence(Level.DEGRADED))  # not yet written
    clock.now += 1
    other.ledger.unban("key:a", by=OPERATOR, reason="r")
    for server in (one, other):
        server.refresh()
        assert server.level("key:a") is Level.CLEAR


def test_a_server_that_was_cut_off_reads_everything_anew(pair: list[Server], clock: Clock) -> None:
    one, other = pair
    one.ledger.observe(caller("key:a"), evidence(Level.HELD))
    one.refresh()
    other.refresh()
    one.ledger.unban("key:a", by=OPERATOR, reason="r")
    clock.now += RESET_KEPT_S + SWEEP_EVERY_S
    one.refresh()  # nothing is left in the store that could tell
    other.refresh()
    assert other.level("key:a") is Level.CLEAR


# -- a store that is lost -----------------------------------------------------------------------


@pytest.fixture
def losing(own_redis_server: RedisServer, clock: Clock) -> Server:
    policy = StatePolicy(store=own_redis_server.url, timeout_ms=200, stale_after_ms=5_000)
    return Server(policy, clock)


def test_a_lost_store_is_told_after_a_while_and_forgets_no_ban(
    losing: Server, own_redis_server: RedisServer, clock: Clock
) -> None:
    losing.ledger.ban("key:a", by=OPERATOR, reason="r", seconds=1_000)
    own_redis_server.kill()
    assert not losing.refresh()
    assert losing.level("key:a") is Level.BANNED
    clock.now += 6
    for who in ("key:a", "key:b"):
        with pytest.raises(StateUnavailable):
            losing.ledger.standing(who)
    assert losing.ledger.remembered("key:a").level is Level.BANNED
    assert losing.ledger.remembered("key:b").level is Level.CLEAR
    with pytest.raises(StateUnavailable):
        losing.ledger.ban("key:b", by=OPERATOR, reason="r")
    losing.ledger.observe(caller("key:c"), evidence(Level.DEGRADED))
    own_redis_server.start()
    assert losing.refresh()
    assert losing.level("key:a") is Level.BANNED
    assert losing.level("key:b") is Level.CLEAR
    again = Server(losing.policy, clock)
    assert again.level("key:a") is Level.BANNED
    assert again.level("key:c") is Level.DEGRADED


def test_a_store_that_comes_back_empty_is_filled_again(
    losing: Server, own_redis_server: RedisServer, clock: Clock
) -> None:
    losing.ledger.ban("key:a", by=OPERATOR, reason="r", seconds=1_000)
    losing.ledger.unban("key:b", by=OPERATOR, reason="r")
    own_redis_server.client().flushall()
    losing.told.clear()
    assert losing.refresh()
    assert losing.told == []
    assert losing.level("key:a") is Level.BANNED
    again = Server(losing.policy, clock)
    assert again.ledger.explain("key:a") == losing.ledger.explain("key:a")


def test_a_store_that_is_lost_at_the_start_is_found_later(
    own_redis_server: RedisServer, clock: Clock
) -> None:
    own_redis_server.kill()
    server = Server(StatePolicy(store=own_redis_server.url, timeout_ms=100), clock)
    with pytest.raises(StateUnavailable):
        server.level("key:a")
    own_redis_server.start()
    assert server.refresh()
    assert server.level("key:a") is Level.CLEAR


def test_a_store_that_can_never_work_stops_the_start(clock: Clock) -> None:
    policy = StatePolicy(store="sqlite:///nowhere/at/all.db")
    with pytest.raises(ConfigError):
        Ledger(open_store(policy), policy, RESPONSE).open()


def test_a_record_that_can_not_be_read_is_not_read_as_clear(
    server: Server, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.store.update("key:a", lambda _: b"of a later version")
    server.refresh()
    with pytest.raises(StateUnavailable):
        server.level("key:a")
    assert server.level("key:b") is Level.CLEAR
    assert "can't be read" in caplog.text
    clock.now += SWEEP_EVERY_S
    assert server.refresh()
    server.ledger.observe(caller("key:a"), evidence(Level.FLAGGED))  # must not replace it
    server.refresh()
    with pytest.raises(StateUnavailable):
        server.level("key:a")
    assert server.store.changes(0).records == (("key:a", b"of a later version"),)
    server.ledger.unban("key:a", by=OPERATOR, reason="r")
    assert server.level("key:a") is Level.CLEAR


def test_what_became_unreadable_before_it_was_written_stays(server: Server) -> None:
    server.ledger.observe(caller("key:a"), evidence(Level.FLAGGED))
    server.store.update("key:a", lambda _: b"of a later version")
    server.refresh()
    with pytest.raises(StateUnavailable):
        server.level("key:a")
    assert server.store.changes(0).records == (("key:a", b"of a later version"),)


def test_losing_and_finding_the_store_is_logged_once(
    losing: Server, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis_server.kill()
    for _ in range(3):
        losing.refresh()
    own_redis_server.start()
    for _ in range(3):
        losing.refresh()
    assert caplog.text.count("does not answer") == 1
    assert caplog.text.count("answers again") == 1


# -- the thread ---------------------------------------------------------------------------------


def test_the_background_carries_a_ban_to_the_other_server(
    shared_policy: Callable[..., StatePolicy],
) -> None:
    policy = shared_policy(refresh_ms=20)
    one, other = (Ledger(open_store(policy), policy, RESPONSE) for _ in range(2))
    one.open()
    other.open()
    one.observe(caller("key:a"), evidence(Level.DEGRADED))
    one.ban("key:b", by=OPERATOR, reason="r")
    until(lambda: other.standing("key:a").level is Level.DEGRADED)
    until(lambda: other.standing("key:b").level is Level.BANNED)
    one.close()
    other.close()


def test_everything_at_once(state_policy: Callable[..., StatePolicy]) -> None:
    """Evidence, an operator and the background, on the same users."""
    policy = state_policy(refresh_ms=20, timeout_ms=60_000)
    ledger = Ledger(open_store(policy), policy, RESPONSE)
    ledger.open()

    def act(n: int) -> None:
        who = f"key:{n % 3}"
        ledger.observe(
            caller(who), evidence([Level.FLAGGED, Level.DEGRADED, Level.SLOWED][n % 7 % 3])
        )
        if n % 10 == 0:
            ledger.ban(who, by=OPERATOR, reason="r", seconds=1_000)
        assert ledger.standing(who).level >= Level.FLAGGED

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(120)))
    for n in range(3):
        assert ledger.standing(f"key:{n}").level is Level.BANNED
        found = ledger.explain(f"key:{n}").found
        assert found is not None
        assert found.level is Level.DEGRADED
    ledger.close()


def test_closing_writes_what_was_found_last(shared_policy: Callable[..., StatePolicy]) -> None:
    policy = shared_policy(refresh_ms=60_000)
    one = Ledger(open_store(policy), policy, RESPONSE)
    one.open()
    one.observe(caller("key:a"), evidence(Level.SLOWED))
    one.close()
    again = Ledger(open_store(policy), policy, RESPONSE)
    again.open()
    assert again.standing("key:a").level is Level.SLOWED
    again.close()


def until(done: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_hot_path_asks_no_store(clock: Clock) -> None:
    """Not even one that never answers."""
    server = Server(StatePolicy(), clock)
    server.store.close()
    server.ledger.observe(caller("key:a"), evidence(Level.SLOWED))
    assert server.ledger.remembered("key:a").level is Level.SLOWED
    assert RELOAD_AFTER_S < RESET_KEPT_S
