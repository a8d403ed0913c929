"""Evidence that accumulates: bounded, monotone, and the same wherever it is added up."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from extraction_world import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_server import RedisServer
from vauban.detectors.extraction.accumulated import (
    ARMS,
    FORGOTTEN,
    NOTHING_YET,
    SEGMENT,
    Accumulated,
)
from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.policy_standing import StatePolicy
from vauban.screening import watcher
from vauban.state.exchange import Exchange
from vauban.state.store import open_store
from vauban.types import Caller, Evidence

CPU = ExtractionPolicy(device="cpu")
REFERENCE = Reference.load()
VALUES = st.lists(st.floats(-100, 100, width=32), min_size=len(ARMS), max_size=len(ARMS)).map(
    lambda row: np.array(row, np.float32)
)


@dataclass(frozen=True)
class Seen:
    """One encoded request."""

    embedding: Floats
    parts: None = None


def after(segments: Sequence[Floats]) -> Accumulated:
    found = NOTHING_YET
    for values in segments:
        found = found.after(values)
    return found


@given(st.lists(VALUES, max_size=12), st.data())
def test_more_suspicion_never_lowers_it(segments: list[Floats], data: st.DataObject) -> None:
    less = REFERENCE.suspect_all(after(segments)).tail
    if segments:
        place = data.draw(st.integers(0, len(segments) - 1))
        segments[place] = segments[place] + np.abs(data.draw(VALUES))
    assert REFERENCE.suspect_all(after(segments)).tail >= less


def test_it_stays_bounded_and_forgets() -> None:
    worst = np.full(len(ARMS), np.inf, np.float32)
    found = after([worst] * 2000)
    assert found.segments <= 1 / FORGOTTEN
    assert np.isfinite(found.means).all()
    calm = found
    for _ in range(500):
        calm = calm.after(np.zeros(len(ARMS), np.float32))
    assert (calm.means < found.means / 100).all()


@given(st.lists(VALUES, max_size=12))
def test_counts_give_it_back(segments: list[Floats]) -> None:
    found = after(segments)
    again = Accumulated.of(found.counts())
    assert again.segments == found.segments
    np.testing.assert_allclose(again.sums, found.sums, rtol=1e-12)


def test_what_others_wrote_does_no_harm() -> None:
    """The store may hold anything by the name of a caller."""
    names = list(NOTHING_YET.counts())
    for numbers in itertools.product((-5.0, 0.0, 1e300, -1e300, np.nan, np.inf), repeat=2):
        found = Accumulated.of({"x": 1.0} | dict(zip(names, numbers, strict=False)))
        assert np.isfinite(REFERENCE.suspect_all(found).tail)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), VALUES), max_size=15))
def test_processes_together_have_what_one_would_have(
    shared_policy: Callable[..., StatePolicy], events: list[tuple[int, Floats]]
) -> None:
    policy, key = shared_policy(), f"key:{secrets.token_hex(8)}"
    exchanges = [Exchange(open_store(policy), policy) for _ in range(3)]
    for process, values in events:
        exchange = exchanges[process]
        exchange.add(key, {})  # hear of the others
        assert exchange.refresh()
        known = Accumulated.of(exchange.sums(key))
        exchange.add(key, (known.after(values) - known).counts())
        assert exchange.refresh()
    one = after([values for _, values in events])
    for exchange in exchanges:
        exchange.add(key, {})
        assert exchange.refresh()
        together = Accumulated.of(exchange.sums(key))
        np.testing.assert_allclose(together.segments, one.segments, atol=1e-9)
        np.testing.assert_allclose(together.sums, one.sums, atol=1e-6)
        assert REFERENCE.suspect_all(together).tail == pytest.approx(
            REFERENCE.suspect_all(one).tail, abs=1e-3
        )


def watch(detector: ExtractionDetector, rows: Floats, name: str = "a") -> Evidence:
    for start in range(0, len(rows), SEGMENT):
        part = [Query(Caller(name), row) for row in rows[start : start + SEGMENT]]
        (*_, last) = detector.observe(part)
    return last


def test_who_asks_two_engines_is_seen_whole(
    shared_policy: Callable[..., StatePolicy], world: World
) -> None:
    policy, rows = shared_policy(), world.script(1024).reshape(-1, SEGMENT, 384)
    exchanges = [Exchange(open_store(policy), policy) for _ in range(2)]
    engines = [ExtractionDetector(CPU, REFERENCE, exchange=exchange) for exchange in exchanges]
    alone = ExtractionDetector(CPU, REFERENCE)
    for turn, part in enumerate(rows):
        seen = dict(watch(engines[turn % 2], part).signals)
        assert exchanges[turn % 2].refresh()
        if turn % 2 == 0:
            half = dict(watch(alone, part).signals)
    assert half["accumulated_queries"] == pytest.approx(512, rel=0.1)
    assert seen["accumulated_queries"] == pytest.approx(1024, rel=0.15)
    assert seen["accumulated"] > half["accumulated"] > 0


def test_what_was_found_before_a_restart_still_counts(
    shared_policy: Callable[..., StatePolicy], world: World
) -> None:
    policy, rows = shared_policy(), world.script(600)
    before = Exchange(open_store(policy), policy)
    watch(ExtractionDetector(CPU, REFERENCE, exchange=before), rows[:512])
    before.close()
    exchange = Exchange(open_store(policy), policy)
    engine = ExtractionDetector(CPU, REFERENCE, exchange=exchange)
    watch(engine, rows[512:544])  # is asked for with the first judgement
    assert exchange.refresh()
    assert dict(watch(engine, rows[544:576]).signals)["accumulated_queries"] > 400


def test_forgetting_forgets_what_has_accumulated(
    shared_policy: Callable[..., StatePolicy], world: World
) -> None:
    policy = shared_policy()
    exchange, store = Exchange(open_store(policy), policy), open_store(policy)
    engine = ExtractionDetector(CPU, REFERENCE, exchange=exchange)
    watch(engine, world.script(512))
    assert exchange.refresh()
    store.open()
    store.drop_counts(["a"])  # as the ledger does
    engine.forget("a")
    rows = world.person(64)
    watch(engine, rows[:32])
    assert exchange.refresh()
    assert dict(watch(engine, rows[32:]).signals)["accumulated_queries"] <= SEGMENT


def test_a_lost_store_stops_no_judgement(world: World) -> None:
    server = RedisServer()
    policy = StatePolicy(store=server.url, timeout_ms=200)
    try:
        exchange = Exchange(open_store(policy), policy)
        engine = ExtractionDetector(CPU, REFERENCE, exchange=exchange)
        rows = world.script(1024)
        watch(engine, rows[:256])
        assert exchange.refresh()
        server.kill()
        for part in (rows[256:512], rows[512:]):
            last = watch(engine, part)
            assert not exchange.refresh()
        assert dict(last.signals)["accumulated_queries"] > 800
        alone = watch(ExtractionDetector(CPU, REFERENCE), rows)
        assert last.score == pytest.approx(alone.score, abs=1e-6)
    finally:
        server.remove()


def test_a_watcher_gives_the_store_what_it_knows_before_it_ends(
    shared_policy: Callable[..., StatePolicy], world: World
) -> None:
    policy = shared_policy(refresh_ms=60_000)  # nothing goes by itself
    for state in (StatePolicy(), policy):
        watch = watcher(CPU, state)
        assert watch is not None
        callers = [Caller("a")] * SEGMENT
        watch(callers, [Seen(row) for row in world.script(SEGMENT)])
        watch.close()
    store = open_store(policy)
    store.open()
    (counts,) = store.add_counts([("a", {})])
    assert Accumulated.of(counts).segments == 1.0
    store.close()
