from __future__ import annotations

import pytest
from extraction_world import World

from vauban.detectors.extraction.reference import Reference


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference.load()
