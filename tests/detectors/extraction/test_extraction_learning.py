"""A reference that learns while it serves, and callers who would drag it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from extraction_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.features import STATISTICS
from vauban.detectors.extraction.learning import (
    EVERY_VOTERS,
    MOST_ALIKE,
    MOST_MOVED,
    MOST_VOTERS,
    Learner,
)
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Caller, Evidence, Level

REFERENCE = Reference.load()
LENGTH = 128
PLACE = REFERENCE.lengths.astype(int).tolist().index(LENGTH)
REPORT = ExtractionPolicy(device="cpu")
USE = ExtractionPolicy(device="cpu", learn="use")


def taught(votes: Sequence[Floats], tags: Sequence[str] = ()) -> Learner:
    learner = Learner(REFERENCE)
    for number, statistics in enumerate(votes):
        learner.take(f"caller-{number}", tags, LENGTH, statistics)
    return learner


def honest(count: int, rng: np.random.Generator) -> list[Floats]:
    centre, up = REFERENCE.centre[PLACE], REFERENCE.up[PLACE]
    return [centre + 0.8 * up * rng.normal(size=len(STATISTICS)) for _ in range(count)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 39), st.floats(-1e6, 1e6))
def test_less_than_half_never_drag_it_past_honest_callers(
    seed: int, liars: int, lie: float
) -> None:
    votes = honest(40, np.random.default_rng(seed))
    lies = [np.full(len(STATISTICS), lie, np.float32)] * liars
    found = taught([*votes, *lies]).learned()
    assert found is not None
    low = np.minimum(np.min(votes, axis=0), REFERENCE.centre[PLACE])
    high = np.maximum(np.max(votes, axis=0), REFERENCE.centre[PLACE])
    assert (found[0].centre[PLACE] >= low - 1e-5).all()
    assert (found[0].centre[PLACE] <= high + 1e-5).all()


@pytest.mark.parametrize("lie", [-1e9, 1e9])
def test_nobody_drags_it_further_than_a_spread(lie: float) -> None:
    liars = [np.full(len(STATISTICS), lie, np.float32)] * MOST_VOTERS
    found = taught(liars).learned()
    assert found is not None
    moved = np.abs(found[0].centre - REFERENCE.centre)
    spread = np.maximum(REFERENCE.up, REFERENCE.down)
    assert (moved <= MOST_MOVED * spread + 1e-5).all()
    assert all(abs(drift) > MOST_MOVED for drift in found[1].values())


def test_who_shares_a_group_or_an_address_has_few_votes() -> None:
    votes = honest(64, np.random.default_rng(0))
    assert len(taught(votes, ["group:thieves"])) == MOST_ALIKE


def test_votes_are_bounded_and_can_be_taken_back() -> None:
    learner = taught(honest(MOST_VOTERS + 50, np.random.default_rng(0)))
    assert len(learner) == MOST_VOTERS
    for number in range(MOST_VOTERS + 50):
        learner.withdraw(f"caller-{number}")
    assert len(learner) == 0
    assert learner.learned() is None


def watched(detector: ExtractionDetector, streams: dict[str, Floats]) -> dict[str, Evidence]:
    for name, rows in streams.items():
        for part in np.split(rows, range(32, len(rows), 32)):
            detector.observe([Query(Caller(name), row) for row in part])
    return {name: detector.evidence(name) for name in streams}


def test_a_fifth_of_thieves_hides_no_thief(world: World) -> None:
    """Some of them are careful: they stop before they can be judged with confidence."""
    detector = ExtractionDetector(USE, REFERENCE)
    thieves = {f"t{n}": world.script(64 if n % 2 else 192) for n in range(10)}
    people = {f"p{n}": world.person(64) for n in range(EVERY_VOTERS + 8)}
    watched(detector, thieves | people)
    assert detector.reference is not REFERENCE
    later = {f"later-{n}": world.script(200) for n in range(5)} | {"p": world.person(200)}
    found = watched(detector, later)
    levels = [evidence.level >= Level.FLAGGED for evidence in found.values()]
    assert levels == [True] * 5 + [False]


@pytest.mark.parametrize("learn", ["report", "off"])
def test_drift_is_told_and_changes_nothing_unless_it_is_to_be_used(
    world: World, learn: str
) -> None:
    policy = ExtractionPolicy(device="cpu", learn=learn)
    detector = ExtractionDetector(policy, REFERENCE)
    watched(detector, {f"p{n}": world.person(64) for n in range(EVERY_VOTERS)})
    told = "drift" in dict(watched(detector, {"later": world.person(64)})["later"].signals)
    assert told is bool(detector.drift) is (learn == "report")
    assert detector.reference is REFERENCE


def test_who_is_suspect_or_forgotten_has_no_vote(world: World) -> None:
    detector = ExtractionDetector(REPORT, REFERENCE)
    learner = detector._learner
    assert learner is not None
    watched(detector, {"thief": world.script(400), "short": world.person(10)})
    assert len(learner) == 0
    watched(detector, {"person": world.person(128)})
    assert len(learner) == 1
    detector.forget("person")
    assert len(learner) == 0
