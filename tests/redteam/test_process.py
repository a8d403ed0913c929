"""A tool ends in time, whatever it does, and how it ended is told."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from vauban.errors import ToolFailed
from vauban.redteam import process
from vauban.redteam.outcome import Outcome
from vauban.redteam.process import Ended, run_tool
from vauban.redteam.relay import Books, Bounds

CONSOLE = Console(file=io.StringIO())


def run(tmp_path: Path, code: str, books: Books | None = None, limit_s: float = 60) -> Ended:
    command = [sys.executable, "-c", code]
    log = tmp_path / "log"
    return run_tool("tool", command, dict(os.environ), books or Books(), limit_s, log, CONSOLE)


def test_one_that_does_its_work(tmp_path: Path) -> None:
    assert run(tmp_path, "print('done')").outcome == "complete"


def test_one_that_fails_says_why(tmp_path: Path) -> None:
    ended = run(tmp_path, "raise SystemExit('no \\x1b[31msuch probe')")
    assert ended.outcome == "tool_failed"
    assert "no  [31msuch probe" in ended.detail


def test_one_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_POLITE_S", 0.5)
    code = (
        "import subprocess, sys, signal, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "open('child', 'w').write(str(p.pid)); time.sleep(600)"
    )
    ended = run(tmp_path, code, limit_s=3)
    assert ended.outcome == "time_limit"
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("dead_target", "target_dead"), ("timeout", "target_dead"), ("rate_limited", "rate_limited")],
)
def test_a_target_past_hope_ends_it(tmp_path: Path, kind: str, outcome: str) -> None:
    books = Books()
    for _ in range(8):
        books.write("p", Outcome.error(kind), Bounds())
    assert run(tmp_path, "import time; time.sleep(600)", books).outcome == outcome
    assert run(tmp_path, "pass", books).outcome == outcome


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed):
        run_tool("tool", ["/none"], {}, Books(), 1, tmp_path / "log", CONSOLE)
