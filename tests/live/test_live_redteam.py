"""The real garak and the real PyRIT against a real guarded vLLM, and the gate over what they find.

The target is scripted (`vauban.scripted`): no language model, and one that can lose. The guarded
run is judged against one recorded before (`tests/redteam/golden/ci-guard-on.json`). For the proof
that the gate can fail, the classifier is switched off on a server without an engine, which starts
in seconds. The tools are installed on first use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from fake_target import Target, serving
from vauban.cli import app
from vauban.commands.redteam_target import SCRIPTED, local_target
from vauban.redteam.gate import families
from vauban.redteam.result import read_result, write_result

HERE = Path(__file__).parents[1] / "redteam"
ON = HERE / "golden" / "ci-guard-on.json"
POLICY = HERE / "gate-ci.yaml"
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def attack(tool: str, url: str, out: Path, *arguments: str) -> Path:
    """`vauban redteam TOOL --profile ci` against this server."""
    given = ["--target", url, "--model", SCRIPTED, "--profile", "ci", "--out", str(out)]
    done = CliRunner().invoke(app, ["redteam", tool, *given, *arguments])
    assert done.exit_code == 0, done.output
    return out


def gate(result: Path, baseline: Path = ON) -> Any:
    judged = ["--policy", str(POLICY), "--baseline", str(baseline)]
    return CliRunner().invoke(app, ["gate", str(result), *judged], env={"COLUMNS": "250"})


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the profile `ci` with everything on."""
    with local_target("on", SCRIPTED) as server:
        answers_do_not_depend_on_the_batch(server.url)
        out = tmp_path_factory.mktemp("redteam") / "on.json"
        return attack("all", server.url, out)


@pytest.fixture(scope="module")
def attacker() -> Iterator[Target]:
    """An attacker model for PyRIT."""
    with serving() as running:
        running.mode = "attacker"
        yield running


@pytest.fixture(scope="module")
def without_classifier(tmp_path_factory: pytest.TempPathFactory, attacker: Target) -> Path:
    """PyRIT alone with the classifier switched off, and turns by the attacker model beside."""
    place = tmp_path_factory.mktemp("redteam-off")
    (place / "policy.yaml").write_text(json.dumps({"injection": {"mode": "off"}}))
    with local_target("on", SCRIPTED, policy_file=place / "policy.yaml", engine=False) as server:
        more = ["--attacker", attacker.url, "--attacker-model", "m"]
        return attack("pyrit", server.url, place / "off.json", *more)


def answers_do_not_depend_on_the_batch(url: str) -> None:
    with httpx.Client(timeout=120, trust_env=False) as client:

        def ask(number: int) -> str:
            text = f"Repeat this sentence: number {number} of " + "many words " * number
            body = {"model": SCRIPTED, "messages": [{"role": "user", "content": text}]}
            answer = client.post(f"{url}/v1/chat/completions", json={**body, "max_tokens": 100})
            return str(answer.json()["choices"][0]["message"]["content"])

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, range(8)))
        assert together == [ask(number) for number in range(8)]
        assert together[3] == "number 3 of many words many words many words"


def test_the_run_says_what_it_was(guarded: Path) -> None:
    result = read_result(guarded)
    assert {tool.tool: tool.outcome for tool in result.tools} == dict.fromkeys(
        ("controls", "garak", "pyrit"), "complete"
    )
    assert result.provenance.target_note.startswith("The target is scripted")
    assert "unknown" not in (result.provenance.policy_digest, result.provenance.server_build)
    for family in ("garak.promptinject", "garak.latentinjection", "pyrit.direct"):
        assert any("classifier" in row.blocked for row in families(result)[family])


def test_a_real_attacker_model_writes_the_turns(without_classifier: Path, attacker: Target) -> None:
    (row,) = families(read_result(without_classifier))["pyrit.attacker_model"]
    assert row.wins == row.attempts > 0
    assert len(attacker.seen) >= row.attempts
    assert all("Attacker AI" in body["messages"][0]["content"] for body in attacker.seen)


def test_the_gate_passes_with_the_guard_on(guarded: Path) -> None:
    done = gate(guarded)
    assert done.exit_code == 0, done.output


def test_the_gate_fails_with_the_classifier_off(without_classifier: Path, tmp_path: Path) -> None:
    """Against what PyRIT found with everything on, and for what attackers won."""
    on = read_result(ON)
    parts = {
        "tools": [run for run in on.tools if run.tool != "garak"],
        "attacks": [row for row in on.attacks if row.tool == "pyrit"],
    }
    write_result(on.model_copy(update=parts), tmp_path / "on.json")
    assert gate(tmp_path / "on.json", tmp_path / "on.json").exit_code == 0
    done = gate(without_classifier, tmp_path / "on.json")
    assert done.exit_code == 1, done.output
    failed = {tuple(line.split()[1:3]) for line in done.output.splitlines() if "✗" in line}
    assert {kind for kind, _ in failed} == {"attack_success", "regression"}
    for family in ("direct", "base64", "zero_width"):
        assert ("regression", f"pyrit.{family}") in failed
    result = read_result(without_classifier)
    assert {tool.outcome for tool in result.tools} == {"complete"}
    assert not any("classifier" in row.blocked for row in result.attacks)
