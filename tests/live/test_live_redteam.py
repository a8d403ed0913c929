"""The quick profile of the red team, with the real garak, against a real server: `make redteam`.

The target is scripted (`vauban.scripted`): no language model, and one that can lose. With the guard
on the gate passes, with it off the same attacks win and the gate fails. Two server starts, so this
is marked slow; at most six minutes, most of them the first installation of garak.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from vauban.cli import app
from vauban.commands.redteam_target import MODEL, scripted_target
from vauban.redteam.gate import families
from vauban.redteam.result import read_result

POLICY = Path(__file__).parents[1] / "redteam" / "gate.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def attack(guard: str, out: Path) -> int:
    """The exit status of the gate."""
    with scripted_target(guard) as server:
        if guard == "off":
            answers_do_not_depend_on_the_batch(server.url)
        arguments = ["--target", server.url, "--model", MODEL, "--out", str(out)]
        done = CliRunner().invoke(app, ["redteam", "garak", *arguments, "--limit-s", "240"])
        assert done.exit_code == 0, done.output
    judged = CliRunner().invoke(app, ["gate", str(out), "--policy", str(POLICY)])
    assert judged.exit_code in (0, 1), judged.output
    return judged.exit_code


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


def test_the_gate_passes_the_guard_and_fails_without_it(tmp_path: Path) -> None:
    assert attack("on", tmp_path / "on.json") == 0
    assert attack("off", tmp_path / "off.json") == 1
    on, off = read_result(tmp_path / "on.json"), read_result(tmp_path / "off.json")
    assert [tool.outcome for tool in off.tools] == ["complete", "complete"]
    assert off.provenance.target_note.startswith("The target is scripted")
    assert on.provenance.policy_digest != off.provenance.policy_digest != "unknown"
    for family in ("garak.promptinject", "garak.latentinjection"):
        wins = [sum(row.wins for row in families(result)[family]) for result in (on, off)]
        assert wins[0] < wins[1]
        assert any("classifier" in row.blocked for row in families(on)[family])
        assert not any(row.blocked for row in families(off)[family])
