"""What must hold of the detector whatever is asked of it."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from extraction_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.extraction.detector import NOTHING, ExtractionDetector, Query
from vauban.detectors.extraction.profile import PROFILE_BYTES, Profile
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import Reference
from vauban.policy import Policy
from vauban.policy_extraction import ExtractionPolicy
from vauban.treatment import Treatment
from vauban.types import Caller, Evidence, Level, Principal, PrincipalKind

SERVICE = Caller("s", service=True)
CPU = ExtractionPolicy(device="cpu")
REFERENCE = Reference.load()


def run(
    streams: dict[str, Floats], order: list[str], batch: int, **policy: object
) -> dict[str, list[Evidence]]:
    """Feed the streams interleaved as `order` says, in batches; each caller's evidence."""
    detector = ExtractionDetector(CPU.model_copy(update=policy), REFERENCE, clock=lambda: 0.0)
    position = dict.fromkeys(streams, 0)
    queries = []
    for name in order:
        queries.append(Query(Caller(name), streams[name][position[name]]))
        position[name] += 1
    found: dict[str, list[Evidence]] = {name: [] for name in streams}
    for start in range(0, len(queries), batch):
        part = queries[start : start + batch]
        for query, evidence in zip(part, detector.observe(part), strict=True):
            found[query.caller.id].append(evidence)
    return found


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 70))
def test_batching_and_other_callers_change_nothing(seed: int, batch: int) -> None:
    world = World(seed=seed)
    streams = {"a": world.script(80), "b": world.person(60)}
    order = ["a"] * 80 + ["b"] * 60
    np.random.default_rng(seed).shuffle(order)
    together = run(streams, order, batch)
    for name, stream in streams.items():
        alone = run({name: stream}, [name] * len(stream), 1)
        assert [e.score for e in together[name]] == [e.score for e in alone[name]]
        assert [e.level for e in together[name]] == [e.level for e in alone[name]]


def test_where_the_search_runs_changes_nothing(device: str, world: World) -> None:
    texts = world.script(400)
    streams = {name: texts[world.rng.permutation(400)] for name in "abc"}
    streams["person"] = world.person(400)
    order = ["a", "b", "c", "person"] * 400
    found = run(streams, order, 64, device=device)
    assert found == run(streams, order, 64)
    assert found["a"][-1].campaign


def test_a_script_is_suspect_and_a_person_is_not(world: World) -> None:
    streams = {"script": world.script(400), "person": world.person(400)}
    found = run(streams, [*(["script", "person"] * 400)], 32)
    assert found["script"][-1].level is Level.BANNED
    assert found["script"][99].level >= Level.FLAGGED
    assert max(e.level for e in found["person"]) is Level.CLEAR
    assert found["script"][-1].score > 0.6 > 0.3 > found["person"][-1].score


def test_levels_are_climbed_one_by_one(world: World) -> None:
    found = run({"script": world.script(600)}, ["script"] * 600, 1, step_queries=64)["script"]
    levels = [evidence.level for evidence in found]
    first = {level: levels.index(level) for level in Level if level in levels}
    assert list(first) == sorted(first)
    reached = [at for level, at in first.items() if level is not Level.CLEAR]
    assert len(reached) == 4  # nobody is held unless the policy says so
    assert all(later - earlier >= 64 for earlier, later in itertools.pairwise(reached))


def test_too_few_queries_say_nothing(world: World) -> None:
    found = run({"script": world.script(31)}, ["script"] * 31, 31)["script"]
    assert all(evidence == Evidence(0.0, Level.CLEAR, 0) for evidence in found)


def test_the_same_text_again_and_again(reference: Reference) -> None:
    """A retry loop: nothing to compare with, no exploration, no crash."""
    same = np.zeros((400, 384), np.float32)
    same[:, 0] = 1.0
    found = run({"loop": same}, ["loop"] * 400, 16)["loop"]
    assert all(0.0 <= evidence.score <= 1.0 for evidence in found)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite(bad: float) -> None:
    detector = ExtractionDetector(CPU, REFERENCE)
    with pytest.raises(ValueError, match="finite"):
        detector.observe([Query(Caller("a"), np.full(384, bad, np.float32))])
    assert len(detector) == 0


def test_a_vector_of_another_size() -> None:
    with pytest.raises(ValueError, match="384"):
        ExtractionDetector(CPU, REFERENCE).observe([Query(Caller("a"), np.ones(3, np.float32))])


def test_memory_is_bounded_and_the_silent_leave_first(world: World) -> None:
    policy = CPU.model_copy(update={"max_memory_bytes": 3 * PROFILE_BYTES})
    detector = ExtractionDetector(policy, REFERENCE)
    for name in ("first", "second", "third", "fourth", "fifth"):
        for _ in range(6):
            rows = world.script(200)
            detector.observe([Query(Caller(name), row) for row in rows])
            assert detector.nbytes <= policy.max_memory_bytes + PROFILE_BYTES
    assert detector.evidence("first").queries == 0
    assert detector.evidence("fifth").queries > 0


def test_who_is_silent_for_long_is_forgotten(world: World) -> None:
    now = [0.0]
    detector = ExtractionDetector(CPU, REFERENCE, clock=lambda: now[0], retention_s=100.0)
    row = world.script(1)[0]
    for name in ("silent", "asking", "asking", "asking"):
        detector.observe([Query(Caller(name), row)])
        now[0] += 60.0
    assert detector.evidence("silent") is NOTHING
    assert len(detector) == 1


def test_who_is_evicted_stays_banned(world: World) -> None:
    bound = Policy.model_validate(
        {"extraction": {"max_memory_bytes": 2**20, "device": "cpu", "step_queries": 16}}
    )
    treatment = Treatment(bound)
    treatment.ledger.open()
    detector = ExtractionDetector(bound.extraction, REFERENCE)
    thief = Principal("key:thief", PrincipalKind.KEY)

    def ask(rows: Floats) -> None:
        for part in np.split(rows, range(32, len(rows), 32)):
            for evidence in detector.observe([Query(Caller(thief.id), row) for row in part]):
                treatment.learn(thief, evidence)

    ask(world.script(400))
    assert treatment.standing(thief.id).level is Level.BANNED
    for number in range(300):
        detector.observe([Query(Caller(f"other-{number}"), row) for row in world.person(2)])
    assert detector.evidence(thief.id) == Evidence(0.0, Level.CLEAR, 0)
    ask(world.person(64))
    assert treatment.standing(thief.id).level is Level.BANNED
    treatment.ledger.close()


def test_a_profile_takes_no_more_than_stated(world: World) -> None:
    profile = Profile()
    projection = REFERENCE.projection
    small = projection(world.script(2400))
    fine = projection.fine_cells(small, projection.cells(small))
    for _ in range(3):
        for vector, cell in zip(small, fine, strict=True):
            if profile.add(vector, int(cell)):
                profile.judge(REFERENCE)
    assert profile.nbytes <= PROFILE_BYTES


def test_forgetting(world: World) -> None:
    detector = ExtractionDetector(CPU, REFERENCE)
    detector.observe([Query(Caller("a"), row) for row in world.script(100)])
    assert detector.evidence("a").queries > 0
    assert detector.forget("a")
    assert not detector.forget("a")
    assert detector.evidence("a").queries == 0
    assert detector.nbytes == 0
    assert len(detector.vectors("a")) == 0


def test_a_service_is_compared_with_itself(world: World) -> None:
    """The order of its queries says nothing; what it asks about, changing, does."""
    detector = ExtractionDetector(CPU, REFERENCE)
    topics = world.texts[:12].reshape(-1, 384)
    rows = topics[world.rng.integers(len(topics), size=3000)]
    usual = detector.observe([Query(SERVICE, row) for row in rows])
    assert max(evidence.level for evidence in usual) is Level.CLEAR
    others = world.texts[12:].reshape(-1, 384)
    rows = others[world.rng.permutation(len(others))[:800]]
    changed = detector.observe([Query(SERVICE, row) for row in rows])
    assert changed[-1].level >= Level.DEGRADED


def test_the_article_finds_nobody(world: World) -> None:
    found = run({"script": world.script(400)}, ["script"] * 400, 16, metric="article")["script"]
    assert found[-1].level < Level.BANNED
    assert found[-1].signals[0][0] == "article"


def test_split_over_accounts(world: World) -> None:
    """Each alone is little suspect at most; together, alike and linked, they are a campaign."""
    detector = ExtractionDetector(CPU, REFERENCE)
    names = [f"account-{n}" for n in range(20)]
    rows = np.concatenate([world.script(2400), World(seed=1).script(600)])
    honest = {f"person-{n}": world.person(150) for n in range(20)}
    last: dict[str, Evidence] = {}
    for turn in range(150):
        queries = [
            Query(Caller(name, tags=("net:10.0.0.0/24",)), rows[turn * 20 + n])
            for n, name in enumerate(names)
        ]
        queries += [Query(Caller(name), stream[turn]) for name, stream in honest.items()]
        for query, evidence in zip(queries, detector.observe(queries), strict=True):
            last[query.caller.id] = evidence
    assert len({last[name].campaign for name in names} - {""}) == 1
    assert sum(bool(last[name].campaign) for name in names) >= 18
    assert not any(last[name].campaign for name in honest)


def test_a_step_takes_the_time_of_no_other_thread(world: World) -> None:
    """Those of BLAS and FAISS would spin in wait of each other's crumbs."""
    detector = ExtractionDetector(CPU, REFERENCE)
    callers = [Caller(f"user-{n}") for n in range(32)]
    steps = [[Query(*pair) for pair in zip(callers, world.script(32), strict=True)]] * 96
    detector.observe(steps[0])
    time.sleep(0.2)  # whoever spins from what was before
    process, own = time.process_time(), time.thread_time()
    for step in steps:
        detector.observe(step)
    process, own = time.process_time() - process, time.thread_time() - own
    assert process < 1.2 * own


def test_who_is_forgiven_begins_anew_also_within_a_batch(world: World) -> None:
    now = 100.0
    detector = ExtractionDetector(CPU, REFERENCE, clock=lambda: now)
    rows = world.script(200)
    detector.observe([Query(Caller("a"), row) for row in rows[:100]])
    assert detector.evidence("a").level is Level.SLOWED
    now = 200.0
    batch = [Query(Caller("a"), rows[100]), Query(Caller("a", forgiven_at=150.0), rows[101])]
    assert detector.observe(batch)[-1] == Evidence(0.0, Level.CLEAR, 0)
    detector.forget("a")
    assert detector.nbytes == 0


def test_who_is_forgiven_by_a_clock_that_is_ahead_begins_anew_once(world: World) -> None:
    detector = ExtractionDetector(CPU, REFERENCE, clock=lambda: 100.0)
    for row in world.script(100):
        (known,) = detector.observe([Query(Caller("a", forgiven_at=3700.0), row)])
    assert known.level is Level.SLOWED


def proposals(found: list[Evidence]) -> list[Evidence]:
    return [evidence for evidence in found if evidence.proposed]


def test_a_steady_program_is_proposed_as_a_service_before_it_is_slowed(world: World) -> None:
    topics = world.texts[:12].reshape(-1, 384)
    rows = topics[world.rng.integers(len(topics), size=600)]
    found = run({"program": rows}, ["program"] * 600, 1)["program"]
    first = next(n for n, evidence in enumerate(found) if evidence.proposed)
    assert first < next(n for n, e in enumerate(found) if e.level > Level.FLAGGED)
    assert found[-1].proposed == "service"


def test_a_proposal_has_no_say_in_the_level(world: World) -> None:
    """A thief is as steady: it is proposed, and banned all the same."""
    found = run({"script": world.script(400)}, ["script"] * 400, 1)["script"]
    assert found[-1].level is Level.BANNED
    assert found[-1].proposed == "service"


def test_who_is_not_flagged_is_not_proposed(world: World) -> None:
    assert not proposals(run({"person": world.person(600)}, ["person"] * 600, 16)["person"])


def test_who_is_flagged_and_changes_is_not_proposed(world: World) -> None:
    """One list after the other, each in any order."""
    rows = np.concatenate([
        world.texts[n : n + 10].reshape(-1, 384)[world.rng.permutation(400)[:128]]
        for n in (0, 10, 20, 30)
    ])  # fmt: skip
    found = run({"a": rows}, ["a"] * len(rows), 1)["a"]
    half_of_each = [found[n - 1] for n in (256, 384, 512)]
    assert min(evidence.level for evidence in half_of_each) >= Level.FLAGGED
    assert not proposals(half_of_each)


def test_who_is_declared_is_not_proposed(world: World) -> None:
    detector = ExtractionDetector(CPU, REFERENCE)
    topics = world.texts[:12].reshape(-1, 384)
    rows = topics[world.rng.integers(len(topics), size=300)]
    person = detector.observe([Query(Caller("s"), row) for row in rows])
    assert person[-1].proposed
    declared = detector.observe([Query(SERVICE, row) for row in rows])
    assert not declared[-1].proposed
    assert declared[-1].level is Level.CLEAR
