from __future__ import annotations

import faiss
import pytest
from extraction_world import World

from vauban.detectors.extraction.reference import Reference


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference.load()


@pytest.fixture(scope="session", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """What the policy's `device` says: once to take the CPU, once to take the GPU."""
    if request.param == "cpu":
        return "cpu"
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        pytest.skip("FAISS finds no GPU; the CPU half of this assertion ran")
    return "auto"
