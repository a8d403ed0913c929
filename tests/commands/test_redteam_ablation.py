"""The ablation: its tables from results, and its servers from the command that starts one."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console

from vauban.commands import redteam_ablation
from vauban.commands.redteam_ablation import ORDER, ablate, tables
from vauban.commands.redteam_target import GUARDS, SCRIPTED, TRAINED, local_target
from vauban.errors import RedTeamError
from vauban.redteam.result import (
    AttackResult,
    BenignResult,
    Provenance,
    Result,
    ToolRun,
    read_result,
)
from vauban.redteam.run import Server, Settings


def made(wins: int, right: int = 10) -> Result:
    row = AttackResult(
        tool="garak", family="garak.dan", name="dan.X", judge="dan.DAN", attempts=20, wins=wins,
        blocked={"classifier": 20 - wins}, resisted=0,
    )  # fmt: skip
    return Result(
        provenance=Provenance(vauban="0", started="now"),
        tools=[ToolRun(tool="garak", version="0", outcome="complete")],
        attacks=[row],
        benign=[
            BenignResult(
                suite="tasks", trigger_words=False, requests=10, answered=10, correct=right
            )
        ],
    )


def test_the_tables_tell_what_was_won_and_what_was_right() -> None:
    text = tables({"off": made(20), "on": made(1, right=9)})
    assert "| off | 20 of 20 (100%, at most 100%) | 0 of 10 | 10 of 10 |" in text
    assert "| on | 1 of 20 (5%, at most 22%) | 0 of 10 | 9 of 10 |" in text
    assert "| garak.dan | 20 of 20 | 1 of 20 |" in text


def test_nothing_judged_is_not_zero_won() -> None:
    dead = made(0)
    row = dead.attacks[0].model_copy(update={"blocked": {}, "errors": {"timeout": 20}})
    assert "| off | none judged |" in tables({"off": dead.model_copy(update={"attacks": [row]})})


def test_every_setting_is_attacked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sorted(ORDER) == sorted(GUARDS)
    started: list[tuple[str, str, bool]] = []

    @contextmanager
    def server(guard: str, model: str, *, engine: bool) -> Any:
        started.append((guard, model, engine))
        yield SimpleNamespace(url=f"http://{guard}")

    def run(tools: Sequence[str], settings: Settings, console: Console) -> Result:
        return made(20 if settings.target.url == "http://off" else 0)

    monkeypatch.setattr(redteam_ablation, "local_target", server)
    monkeypatch.setattr(redteam_ablation, "run_all", run)
    console = Console(file=io.StringIO())
    ablate(console, ["garak"], Settings(Server("")), tmp_path, model=TRAINED, engine=False)
    assert started == [(guard, TRAINED, False) for guard in ORDER]
    ablate(
        console,
        ["garak"],
        Settings(Server("")),
        tmp_path,
        model=TRAINED,
        engine=True,
        guards=["on"],
    )
    assert started[len(ORDER) :] == [("on", TRAINED, True)]
    assert read_result(tmp_path / "guard-off.json").attacks[0].wins == 20
    assert "| on | 0 of 20" in (tmp_path / "ablation.md").read_text()


def test_a_setting_that_does_not_exist_is_refused_before_any_is_attacked(tmp_path: Path) -> None:
    with pytest.raises(RedTeamError, match="--guard must be one of"):
        ablate(
            Console(file=io.StringIO()), [], Settings(Server("")), tmp_path,
            model=SCRIPTED, engine=False, guards=["on", "none"],
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", [SCRIPTED, pytest.param(TRAINED, marks=pytest.mark.slow)])
def test_a_target_without_an_engine_is_started_and_stopped(model: str) -> None:
    with local_target("off", model, engine=False) as server:
        listed = httpx.get(f"{server.url}/v1/models", trust_env=False).json()
        assert listed["data"][0]["id"] == model
        assert server.process.poll() is None
    assert server.process.poll() is not None


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vauban", "gate", "none.json"], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"none.json" in done.stderr
