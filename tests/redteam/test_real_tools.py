"""The real garak and PyRIT against targets that fail them: told as such, and over in good time.

Left alone, both repeat for ever what a dead or throttled target does not answer. Slow: each run
starts a tool, and the first one installs it.
"""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fake_target import Target
from vauban.redteam import run
from vauban.redteam.gate import judge
from vauban.redteam.gate_policy import load_gate_policy
from vauban.redteam.relay import Bounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("tool", ["garak", "pyrit"])
@pytest.mark.parametrize(
    ("mode", "outcome"),
    [("throttle", "rate_limited"), ("hang", "target_dead"), ("hang up", "target_dead")],
)
def test_a_target_that_fails_the_tools(target: Target, tool: str, mode: str, outcome: str) -> None:
    target.mode = mode
    bounds = Bounds(request_s=1.0 if mode == "hang" else 60, retries=1, max_wait_s=0.1)
    settings = run.Settings(
        run.Server(target.url, "m"), profile="ci", bounds=bounds, suites=(), limit_s=120
    )
    result = run.run_all([tool], settings, Console(file=io.StringIO()))
    found = next(row for row in result.tools if row.tool == tool)
    assert found.outcome == outcome, found.detail
    assert all(row.wins == row.resisted == 0 for row in result.attacks)
    assert any(c.name == f"run: {tool}" and not c.passed for c in judge(result, load_gate_policy()))


@pytest.mark.parametrize("tool", ["garak", "pyrit"])
def test_a_target_that_answers_is_attacked_to_the_end(target: Target, tool: str) -> None:
    settings = run.Settings(run.Server(target.url, "m"), profile="ci", suites=(), limit_s=200)
    result = run.run_all([tool], settings, Console(file=io.StringIO()))
    assert {row.tool: row.outcome for row in result.tools}[tool] == "complete"
    assert sum(row.wins for row in result.attacks) > 0
    assert sum(row.attempts for row in result.attacks) == sum(r.judged for r in result.attacks)
