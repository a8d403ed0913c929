"""The map: the same in every process and for every batch, and told with each query."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from extraction_world import World

from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.plane import Plane
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Caller, Evidence, Level


def test_two_axes_of_length_one_at_right_angles(reference: Reference) -> None:
    plane = Plane.of(reference.projection)
    np.testing.assert_allclose(plane.axes.T @ plane.axes, np.eye(2), atol=1e-5)
    assert plane.cells.shape == (len(reference.projection.centres), 2)
    spread = plane.cells.std(axis=0)
    assert spread[0] >= spread[1] > 0
    largest = np.abs(plane.axes).argmax(axis=0)
    assert (plane.axes[largest, [0, 1]] > 0).all()  # which way is up is no accident


def test_each_query_is_told_with_its_place(reference: Reference, world: World) -> None:
    detector = ExtractionDetector(ExtractionPolicy(device="cpu"), reference)
    asked = world.person(10)
    found = detector.observe([Query(Caller("a"), row) for row in asked])
    plane = Plane.of(reference.projection)
    wanted = plane(reference.projection(asked))
    np.testing.assert_allclose([e.at for e in found if e.at], wanted, atol=6e-4)
    assert (np.abs(wanted) <= 1).all()
    assert detector.evidence("a").at is None  # it belongs to a query, not to a user


def test_a_place_changes_nothing_else() -> None:
    evidence = Evidence(
        0.5, Level.FLAGGED, 40, (("arm", 1.0),), "campaign-1", 3.0, proposed="service"
    )
    left_out = [f.name for f in fields(Evidence) if getattr(evidence, f.name) == f.default]
    assert left_out == ["at"]  # a field that is new has to be given above
    placed = evidence.lying_at(0.1, 0.2)
    assert (placed, placed.at) == (replace(evidence, at=(0.1, 0.2)), (0.1, 0.2))
