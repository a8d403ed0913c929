"""The quick profile of the red team, with the real garak, against a real server: `make redteam`.

The target is scripted (`vauban.scripted`): no language model, and one that can lose. The run with
every stage off is recorded (`tests/redteam/golden/guard-off.json`), so one server is enough. Marked
slow: some minutes, and the first time the installation of garak.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from vauban.cli import app
from vauban.commands.redteam_target import MODEL, scripted_target
from vauban.redteam.gate import families, judge
from vauban.redteam.gate_policy import load_gate_policy
from vauban.redteam.result import Result, read_result

OFF = Path(__file__).parents[1] / "redteam" / "golden" / "guard-off.json"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What garak finds with the guard on."""
    out = tmp_path_factory.mktemp("redteam") / "on.json"
    with scripted_target("on") as server:
        answers_do_not_depend_on_the_batch(server.url)
        arguments = ["--target", server.url, "--model", MODEL, "--out", str(out)]
        done = CliRunner().invoke(app, ["redteam", "garak", *arguments, "--limit-s", "240"])
        assert done.exit_code == 0, done.output
    return read_result(out)


def answers_do_not_depend_on_the_batch(url: str) -> None:
    with httpx.Client(timeout=120, trust_env=False) as client:

        def ask(number: int) -> str:
            text = f"Repeat this sentence: number {number} of " + "many words " * number
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
            answer = client.post(f"{url}/v1/chat/completions", json={**body, "max_tokens": 100})
            return str(answer.json()["choices"][0]["message"]["content"])

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, range(8)))
        assert together == [ask(number) for number in range(8)]
        assert together[3] == "number 3 of many words many words many words"


def test_the_run_is_whole(guarded: Result) -> None:
    checks = judge(guarded, load_gate_policy())
    assert [c.name for c in checks if c.kind in ("run", "unjudged") and not c.passed] == []
    assert guarded.provenance.target_note.startswith("The target is scripted")
    assert guarded.provenance.policy_digest != "unknown"


def test_with_every_stage_off_the_gate_fails_against_it(guarded: Result) -> None:
    recorded = read_result(OFF)
    off = recorded.model_copy(
        update={"attacks": [row for row in recorded.attacks if row.tool == "garak"]}
    )
    failed = [c.name for c in judge(off, load_gate_policy(), guarded) if not c.passed]
    assert "regression: garak.promptinject" in failed
    for family in ("garak.promptinject", "garak.latentinjection"):
        assert any("classifier" in row.blocked for row in families(guarded)[family])
