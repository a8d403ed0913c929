"""Results to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from made_results import attack, benign

from fake_target import Target, serving
from vauban.redteam.result import Latency, Provenance, Result, ToolRun


@pytest.fixture
def make_result() -> Callable[..., Result]:
    """make_result(attacks=[...], ...) -> Result: a run that went well, with what is given."""

    def make(**parts: Any) -> Result:
        whole: dict[str, Any] = {
            "provenance": Provenance(vauban="0.1", started="2026-01-01T00:00:00Z"),
            "tools": [ToolRun(tool="garak", version="0.17.1", outcome="complete")],
            "attacks": [attack()],
            "benign": [benign()],
            "latency": Latency(source="server", added_ms=[20.0] * 100),
        }
        return Result(**(whole | parts))

    return make


@pytest.fixture
def target() -> Iterator[Target]:
    """An endpoint that behaves as `target.mode` says."""
    with serving() as running:
        yield running
