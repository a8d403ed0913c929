"""The tools' environments: made once, in the user's cache, and never used half made."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from vauban.errors import ToolFailed
from vauban.redteam import environment

CONSOLE = Console(file=io.StringIO())


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What uv was asked for; `venv` makes the interpreter, nothing is fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[list[str]] = []

    def run(command: list[str], environ: Mapping[str, str]) -> None:
        made.append(command)
        if command[1] == "venv":
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").touch()

    monkeypatch.setattr(environment, "_run", run)
    return made


def test_it_is_made_once(calls: list[list[str]], tmp_path: Path) -> None:
    python = environment.python_of("garak", CONSOLE)
    assert python.is_relative_to(tmp_path / "vauban" / "redteam")
    assert [command[1] for command in calls] == ["venv", "pip"]
    assert calls[1][-1] == "garak==0.17.1"
    assert environment.python_of("garak", CONSOLE) == python
    assert len(calls) == 2


def test_one_that_broke_off_is_made_again(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = environment._run

    def breaks(command: list[str], environ: Mapping[str, str]) -> None:
        working(command, environ)
        if command[1] == "pip":
            raise ToolFailed("no index")

    monkeypatch.setattr(environment, "_run", breaks)
    with pytest.raises(ToolFailed):
        environment.python_of("pyrit", CONSOLE)
    # Once with the torch beside vauban, once with any.
    assert [command[1] for command in calls] == ["venv", "pip", "pip"]
    monkeypatch.setattr(environment, "_run", working)
    environment.python_of("pyrit", CONSOLE)
    assert len(calls) == 5


def test_no_key_of_the_user_reaches_a_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "VAUBAN_SECRET", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "hidden")
    assert "hidden" not in environment.tool_environ(tmp_path).values()


def test_no_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolFailed, match=r"vauban\[redteam\]"):
        environment._uv()


def test_what_uv_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="uv failed"):
        environment._run(["/bin/sh", "-c", "echo no such index >&2; exit 1"], {})
    with pytest.raises(ToolFailed, match="can't be started"):
        environment._run([str(tmp_path / "uv")], {})
