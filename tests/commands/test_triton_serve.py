"""`vauban triton serve` leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vauban.cli import app
from vauban.commands import triton
from vauban.hosts.triton.server import Server


def test_what_outlives_the_server_is_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/engine\nexit 3\n")
    binary.chmod(0o755)
    monkeypatch.setattr(triton, "find_server", lambda: Server(binary, tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test run keeps its own
    done = CliRunner().invoke(app, ["triton", "serve", "--model-repository", str(tmp_path)])
    assert done.exit_code == 3
    engine = int((tmp_path / "engine").read_text())
    deadline = time.monotonic() + 10
    while _runs(engine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(engine)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended, but that nobody has waited for, runs no more.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
