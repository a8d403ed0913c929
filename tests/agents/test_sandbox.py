"""The sandbox as it is used: by the command, with machines kept ready, and for sessions."""

from __future__ import annotations

import ast
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vauban.agents import canary
from vauban.agents.frames import Job, Reason, Result
from vauban.agents.sandbox import Pool, Sandbox
from vauban.agents.vm import Vm
from vauban.cli import app
from vauban.errors import GuestFailed, NoIsolation, SandboxBusy
from vauban.policy_sandbox import SandboxPolicy

PATIENT = {"wall_s": 60, "cpu_s": 60, "pool": 0}


def test_the_command_prints_what_the_program_prints(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox is there so that its snapshot is in the cache."""
    for name, value in PATIENT.items():
        monkeypatch.setenv(f"VAUBAN_SANDBOX__{name.upper()}", str(value))
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "print(open('data.txt').read())\n"
        "open('made', 'w').write('result')\n"
        "print('to err', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    (tmp_path / "data.txt").write_text("from the host")
    command = ["sandbox", "run", str(program), "--put", str(tmp_path / "data.txt")]
    command += ["--take", "made", "--take", "missing", "--into", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 3
    assert done.stdout == "from the host\n"
    assert done.stderr.startswith("to err\n")
    assert "no missing" in done.stderr
    assert f"tier {sandbox.tier.name}, exited 3, ran" in done.stderr.splitlines()[-1]
    assert (tmp_path / "made").read_text() == "result"


@pytest.fixture(scope="module")
def shared(image_directory: Path, cache: Path) -> Iterator[Sandbox]:
    """One machine kept ready, and one for each session."""
    policy = SandboxPolicy(**PATIENT | {"pool": 1}, per="session", max_running=1, max_waiting=0)
    with Sandbox(policy, cache, canary=False) as sandbox:
        yield sandbox


def test_a_machine_that_was_kept_ready_is_as_new(shared: Sandbox) -> None:
    code = b"import os\nprint([os.urandom(8), os.listdir('/work'), os.listdir('/tmp')])\n"
    told = []
    for _ in range(2):
        assert shared.pool.wait_full(300)
        told.append(ast.literal_eval(shared.run(Job(code)).out.decode()))
    assert told[0][0] != told[1][0]
    assert [each[1:] for each in told] == [[["main.py"], []]] * 2


def test_programs_of_a_session_share_files_and_no_others_do(shared: Sandbox) -> None:
    write = Job(b"open('kept', 'w').write('mine')")
    read = Job(b"import os\nprint(os.listdir())")
    assert shared.run(write, "a").reason is Reason.EXITED
    assert b"kept" in shared.run(read, "a").out
    assert b"kept" not in shared.run(read, "").out
    held = shared._sessions["a"]
    shared.end_session("a")
    assert not held.alive
    assert b"kept" not in shared.run(read, "a").out
    shared.end_session("a")


def test_a_session_that_was_left_makes_room_for_the_next(shared: Sandbox) -> None:
    write = Job(b"open('kept', 'w').write('mine')")
    shared.run(write, "left")
    left = shared._sessions["left"]
    shared.run(write, "next")
    assert list(shared._sessions) == ["next"]
    assert not left.alive
    assert b"kept" in shared.run(Job(b"import os\nprint(os.listdir())"), "next").out
    shared.end_session("next")


def test_too_many_programs_are_refused_and_not_queued(shared: Sandbox) -> None:
    slow = Job(b"import time\ntime.sleep(5)")
    results: list[Result] = []
    first = threading.Thread(target=lambda: results.append(shared.run(slow)))
    first.start()
    while shared._waiting._value:  # type: ignore[attr-defined]
        time.sleep(0.01)
    with pytest.raises(SandboxBusy):
        shared.run(slow)
    first.join()
    assert results[0].reason is Reason.EXITED


def test_a_killed_machine_is_an_answer(sandbox: Sandbox) -> None:
    vm = sandbox.clone()
    killer = threading.Timer(1.0, vm._jailed.process.kill)
    killer.start()
    result = vm.run(Job(b"import time\ntime.sleep(50)", results=("a",)))
    assert (result.reason, result.status) == (Reason.GUEST_LOST, 137)
    assert set(result.missing) == {"a"}
    assert not vm.alive


def test_a_canary_that_finds_a_way_out_closes_the_sandbox(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "PROBES", "WHAT\nprint(['tcp'])")
    with pytest.raises(NoIsolation, match="tcp"):
        canary.check(sandbox)


class FakeVm:
    def __init__(self, alive: bool = True) -> None:
        self.alive = alive
        self.killed = False

    def kill(self) -> str:
        self.killed = True
        return ""


def test_a_machine_that_lacks_descriptors_is_a_clear_failure(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", none_left)
        with pytest.raises(GuestFailed, match="Too many open files"):
            sandbox.clone()
    assert sandbox.run(Job(b"print(1)")).out == b"1\n"


def test_the_pool_passes_over_the_dead_and_survives_failures() -> None:
    made: list[FakeVm] = []

    def make() -> Vm:
        if len(made) == 1:
            made.append(FakeVm(alive=False))
            raise GuestFailed("once")
        made.append(FakeVm(alive=len(made) > 2))
        vm: Any = made[-1]
        return vm

    pool = Pool(1, make)
    taken = None
    for _ in range(200):
        assert pool.wait_full(30)
        if (taken := pool.take()) is not None:
            break
    assert isinstance(taken, FakeVm)
    assert taken.alive
    pool.close()
    assert all(vm.killed for vm in made if vm is not taken and vm is not made[1])
    assert Pool(0, make).take() is None
