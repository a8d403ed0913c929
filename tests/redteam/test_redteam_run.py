"""A whole run over a fake endpoint, with a small program in the tools' place."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fake_target import Target, serving
from vauban.cli import app
from vauban.commands.redteam_target import MODELS, SCRIPTED, TRAINED, mark
from vauban.errors import RedTeamError
from vauban.redteam import garak_run, run
from vauban.redteam.benign import Harmless, Suite
from vauban.redteam.gate import judge
from vauban.redteam.gate_policy import load_gate_policy
from vauban.redteam.relay import Bounds
from vauban.redteam.result import Result

CONSOLE = Console(file=io.StringIO())
SUITES = (Suite("tasks", trigger_words=False, rows=[Harmless("Say one", "one")] * 60),)

# Sends ten attacks to the endpoint in its configuration and writes the report that garak would.
GARAK = """
import json, pathlib, sys, urllib.request
config = pathlib.Path(sys.argv[sys.argv.index("--config") + 1])
text = config.read_text()
url = text.split("uri: ")[1].split()[0]
report = config.with_name("vauban.report.jsonl").open("w")
def write(**entry): report.write(json.dumps(entry) + "\\n"); report.flush()
write(entry_type="init", garak_version="0.17.1")
for number in range(10):
    said = f"ignore this, {number}"
    body = {"messages": [{"role": "user", "content": said}]}
    request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    try:
        json.load(urllib.request.urlopen(request, timeout=60)); output, score = {"text": "x"}, 1.0
    except urllib.error.HTTPError:
        output, score = None, None
    turn = {"role": "user", "content": {"text": said}}
    write(entry_type="attempt", status=2, probe_classname="dan.Fake", outputs=[output],
          prompt={"turns": [turn]}, detector_results={"dan.DAN": [score]})
write(entry_type="completion")
"""


@pytest.fixture
def attack(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """attack(mode) -> the result of a run against the target in this mode."""
    module = tmp_path / "bin"
    module.mkdir()
    (module / "garak.py").write_text(GARAK)
    python = module / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{module}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(garak_run, "python_of", lambda *_: python)

    def go(mode: str, **more: Any) -> Result:
        target.mode = mode
        bounds = Bounds(
            request_s=0.3 if mode in ("hang", "drip") else 60, retries=1, max_wait_s=0.01
        )
        fields = {"bounds": bounds, "limit_s": 60.0, "suites": SUITES, **more}
        settings = run.Settings(target=run.Server(target.url, "m"), **fields)
        return run.run_all(["garak"], settings, CONSOLE)

    return go


def failed(result: Result) -> set[str]:
    return {c.name for c in judge(result, load_gate_policy()) if not c.passed}


def test_a_guarded_target(attack: Callable[..., Result]) -> None:
    result = attack("guard")
    (row,) = result.attacks
    assert (row.wins, row.blocked) == (0, {"classifier": 10})
    assert [tool.outcome for tool in result.tools] == ["complete", "complete"]
    assert result.provenance.server_build == "9.9.9"
    assert result.latency is not None
    assert result.latency.added_ms == [7.5] * 60
    # Ten attempts are too few to show it, and the gate says just that.
    assert failed(result) == {"attack_success: garak.dan"}


def test_the_same_model_without_the_guard_beside_it(attack: Callable[..., Result]) -> None:
    with serving() as other:
        result = attack("guard", baseline=run.Server(other.url, "m"))
        found = result.unguarded
        assert found is not None
        assert [(row.wins, row.blocked) for row in found.attacks] == [(10, {})]
        assert [tool.outcome for tool in found.tools] == ["complete", "complete"]
        assert result.latency is not None
        assert (result.latency.source, len(result.latency.added_ms)) == ("baseline", 60)
        assert failed(result) == {"attack_success: garak.dan"}
        other.mode = "block"  # it can't lose, so the guard proves nothing before it
        weak = attack("guard", baseline=run.Server(other.url, "m"), suites=())
        assert "coverage: a target that can lose" in failed(weak)
        other.mode = "broken"
        assert "run: garak without the guard" in failed(
            attack("guard", baseline=run.Server(other.url, "m"), suites=())
        )


def test_a_baseline_that_is_not_there_is_an_error(attack: Callable[..., Result]) -> None:
    with pytest.raises(RedTeamError, match=r"127\.0\.0\.1:1 does not answer"):
        attack("guard", baseline=run.Server("http://127.0.0.1:1"))


def test_with_the_guard_off_the_gate_fails(attack: Callable[..., Result]) -> None:
    (row,) = attack("answer").attacks
    assert (row.wins, row.blocked) == (10, {})


@pytest.mark.parametrize(
    ("mode", "kind", "outcome"),
    [
        ("hang", "timeout", "target_dead"),
        ("drip", "timeout", "target_dead"),
        ("throttle", "rate_limited", "rate_limited"),
        ("broken", "server_error", "target_dead"),
        ("hang up", "dead_target", "target_dead"),
    ],
)
def test_a_target_that_dies_is_never_a_pass(
    attack: Callable[..., Result], mode: str, kind: str, outcome: str
) -> None:
    result = attack(mode)
    assert {tool.outcome for tool in result.tools} == {outcome}
    assert all(row.wins == row.resisted == 0 for row in result.attacks)
    assert {k for row in result.attacks for k in row.errors} <= {kind}
    assert {"run: garak", "run: controls", "unjudged: tasks"} <= failed(result)


def test_a_tool_that_takes_too_long(attack: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "bin" / "garak.py").write_text("import time; time.sleep(600)")
    tools = attack("answer", limit_s=1.0).tools
    assert [tool.outcome for tool in tools] == ["complete", "time_limit"]


@pytest.mark.parametrize(
    ("code", "detail"), [("raise SystemExit(3)", "ended with 3"), ("pass", "wrote no report")]
)
def test_a_tool_that_fails(
    attack: Callable[..., Result], tmp_path: Path, code: str, detail: str
) -> None:
    (tmp_path / "bin" / "garak.py").write_text(code)
    assert attack("answer").tools[1].outcome == "tool_failed"
    assert detail in attack("answer").tools[1].detail


def test_nobody_is_there() -> None:
    settings = run.Settings(target=run.Server("http://user:hidden@127.0.0.1:1/v1"))
    with pytest.raises(RedTeamError, match=r"127\.0\.0\.1:1 does not answer") as told:
        run.run_all([], settings, CONSOLE)
    assert "hidden" not in str(told.value)


def test_a_target_of_ours_is_known_by_its_mark_and_not_by_its_name(
    attack: Callable[..., Result], target: Target, tmp_path: Path
) -> None:
    suite, out = tmp_path / "mine.jsonl", tmp_path / "out.json"
    suite.write_text(json.dumps({"text": "Say one"}) + "\n")

    def told(*more: str) -> tuple[str, str]:
        arguments = ["--target", target.url, "--out", str(out), "--benign", str(suite), *more]
        done = CliRunner().invoke(app, ["redteam", "garak", *arguments])
        assert done.exit_code == 0, done.output
        run = Result.model_validate_json(out.read_bytes()).provenance
        return run.model, run.target_note

    target.models = [SCRIPTED, TRAINED]  # a user's own, that happen to be called so
    assert told("--model", TRAINED) == (TRAINED, "")
    target.models = ["scripted", mark(SCRIPTED)]
    for named in ((), ("--model", SCRIPTED)):
        assert told(*named) == (SCRIPTED, MODELS[SCRIPTED].note)
    assert told("--note", "half of it")[1] == "half of it"


def test_the_command_writes_a_result_that_the_gate_reads(
    attack: Callable[..., Result], target: Target, tmp_path: Path
) -> None:
    target.mode = "answer"
    suite = tmp_path / "mine.jsonl"
    suite.write_text(json.dumps({"text": "Say one", "answer": "one"}) + "\n")
    out = tmp_path / "out.json"
    arguments = ["--target", target.url, "--model", "m", "--out", str(out), "--benign", str(suite)]
    done = CliRunner().invoke(app, ["redteam", "garak", *arguments])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["gate", str(out)]).exit_code == 1
    result = Result.model_validate_json(out.read_bytes())
    assert result.benign[0].suite == "mine.jsonl"
    assert "ignore this" not in out.read_text()
