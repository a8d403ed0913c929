"""What an emulator that a guest has taken over could do: the jail, with Python in its place."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attempts import ATTEMPTS

from vauban.agents import cgroup, jail, qemu, tiers
from vauban.agents.image import Image
from vauban.agents.qemu import Machine, Wiring
from vauban.agents.tiers import VM_HW, VM_TCG, choose, probe
from vauban.agents.vm import Vm
from vauban.errors import GuestFailed, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

PROBES = (
    ATTEMPTS
    + """

attempt("vsock", lambda: socket.socket(40, 1) and "open")
attempt("tcp", lambda: socket.socket(2, 1) and "open")
attempt("unix", lambda: socket.socket(1, 1) and "open")
attempt("netlink", lambda: socket.socket(16, 3) and "open")
attempt("unshare", lambda: call(272, 0x10000000))
attempt("clone namespace", lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("keyctl", lambda: call(250, 0, 0, 0))
attempt("io_uring", lambda: call(425, 1, 0))
attempt("bpf", lambda: call(321, 5, 0, 0))
attempt("perf", lambda: call(298, 0, 0, -1, -1, 0))
attempt("ptrace", lambda: call(101, 0, 0, 0, 0))
attempt("mount", lambda: call(165, b"none", b"/", b"tmpfs", 0, 0))
attempt("userfaultfd", lambda: call(323, 0))
attempt("personality", lambda: call(135, 0))
attempt("outlive the jail", lambda: call(157, 1, 0, 0, 0, 0))
attempt("outlive it, by a wide option", lambda: call(157, ctypes.c_long(1 << 32 | 1), 0, 0, 0, 0))
attempt("fork", lambda: os.fork() and "open")
attempt("setuid", lambda: os.setuid(0))
attempt("chroot", lambda: os.chroot("/"))
attempt("write root", lambda: os.open("/x", os.O_CREAT | os.O_WRONLY))
attempt("write usr", lambda: os.open("/usr/lib/x", os.O_CREAT | os.O_WRONLY))
attempt("home", lambda: os.listdir("/root"))
attempt("etc", lambda: os.listdir("/etc"))
attempt("work", lambda: os.listdir(SECRET_FOLDER))
attempt("secret", lambda: open(SECRET_FOLDER + "/secret").read())
attempt("kvm", lambda: os.open("/dev/kvm", os.O_RDWR))
found["user"] = os.getuid(), os.getgid()
found["processes"] = sorted(p for p in os.listdir("/proc") if p.isdigit())
found["environment"] = open("/proc/1/environ").read()
found["rights"] = [line.split()[1] for line in open("/proc/self/status")
                   if line[:7] in ("CapEff:", "CapBnd:", "NoNewPr", "Seccomp")][:4]
sys.stderr.write(repr(found))
"""
)
PYTHON = "/usr/bin/python3"


def in_jail(*command: str, **options: Any) -> str:
    jailed = jail.start(command, memory_bytes=128 << 20, cpu_s=60, **options)
    try:
        jailed.process.wait(120)
        assert jailed.process.stderr is not None
        return jailed.process.stderr.read().decode()
    finally:
        jailed.kill()


def test_a_taken_emulator_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "secret").chmod(0o400)
    said = in_jail(PYTHON, "-ISc", f"SECRET_FOLDER = {str(tmp_path)!r}\n{PROBES}")
    assert "hunter2" not in said
    found = ast.literal_eval(said)
    assert found.pop("user") == (65534, 65534)
    assert found.pop("processes") == ["1"]
    variables = found.pop("environment").strip("\0").split("\0")
    assert {variable.partition("=")[0] for variable in variables} <= {"", "PATH", "PWD"}
    rights = found.pop("rights")
    assert rights[:2] == ["0000000000000000", "0000000000000000"]
    assert rights[2:] == ["1", "2"]
    assert not {name: told for name, told in found.items() if "refused" not in str(told)}


def test_a_process_of_another_namespace_is_not_taken_for_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.procs").write_text("0\n")
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    cgroup.Group((tmp_path,)).remove()
    assert not killed


def test_root_starts_no_jail_as_root(tmp_path: Path) -> None:
    """bubblewrap reads files by the rights of who started it, whatever it shows inside."""
    if os.geteuid() != 0:
        pytest.skip("only root can drop to another user")
    jailed = jail.start(["/usr/bin/sleep", "60"], memory_bytes=1 << 27, cpu_s=60)
    try:
        status = Path(f"/proc/{jailed.process.pid}/status")
        deadline = time.monotonic() + 30
        while "bwrap" not in status.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        uids = next(line for line in status.read_text().splitlines() if line.startswith("Uid"))
        assert set(uids.split()[1:]) == {"65534"}
    finally:
        jailed.kill()


def test_the_emulator_is_in_its_control_group_with_all_it_starts() -> None:
    if cgroup.version() == "none":
        pytest.skip("this user can make no control groups; resource limits hold alone")
    jailed = jail.start(["/usr/bin/sleep", "60"], memory_bytes=1 << 27, cpu_s=60)
    try:
        assert jailed.group is not None
        deadline = time.monotonic() + 30
        names: set[str] = set()
        while "sleep" not in names and time.monotonic() < deadline:
            held = (jailed.group.places[0] / "cgroup.procs").read_text().split()
            comms = [Path("/proc", pid, "comm") for pid in held]
            names = {comm.read_text().strip() for comm in comms if comm.exists()}
            time.sleep(0.02)
        assert "sleep" in names
    finally:
        jailed.kill()
    assert not any(place.exists() for place in jailed.group.places)


def test_groups_of_dead_processes_are_swept() -> None:
    if cgroup.version() == "none":
        pytest.skip("this user can make no control groups")
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    group = cgroup.new_group(1 << 27, 8)
    assert group is not None
    group.remove()
    left = [p.with_name(p.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-")) for p in group.places]
    for place in left:
        place.mkdir()
    cgroup.sweep()
    assert not any(place.exists() for place in left)


def test_there_is_one_command_line_and_no_network_in_it(image: Image) -> None:
    wiring = Wiring(3, 4, 5)
    lines = {
        (kind, restore): qemu.command(Machine(kind, 128 << 20), image, wiring, restore=restore)
        for kind in ("kvm", "tcg")
        for restore in (False, True)
    }
    for (kind, restore), line in lines.items():
        assert line[line.index("-nic") + 1] == "none"
        assert not [word for word in line if "net" in word.split(",")[0] or "vsock" in word]
        assert line[line.index("-accel") + 1].startswith(kind)
        memory = line[line.index("-object") + 1]
        assert ("share=off,readonly=on" in memory) is restore
        assert "readonly=on" in line[line.index("-drive") + 1]
    assert "tsc_early_khz=" in " ".join(lines["tcg", False])


def test_no_value_selects_the_host() -> None:
    """Neither the host, nor a container, nor Pyodide can be named."""
    for name in ("host", "none", "docker", "pyodide", "process", ""):
        with pytest.raises(ValueError, match="floor"):
            SandboxPolicy(floor=name)  # type: ignore[arg-type]
    assert {VM_HW, VM_TCG} == {"vm-hw", "vm-tcg"}


@pytest.mark.parametrize("floor", ["vm", "gvisor", "wasm", "bubblewrap"])
def test_without_an_emulator_nothing_runs(
    image_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: Any
) -> None:
    """Neither is gVisor there. What was opened for it is closed again."""
    monkeypatch.setenv("PATH", str(tmp_path))
    qemu.binary.cache_clear()
    policy = SandboxPolicy(floor=floor, image=image_directory)
    before = len(list(Path("/proc/self/fd").iterdir()))
    try:
        with pytest.raises(NoIsolation, match="vm-tcg: qemu-system-x86_64 is missing") as refused:
            choose(policy, tmp_path / "cache")
    finally:
        monkeypatch.undo()
        qemu.binary.cache_clear()
    assert ("runsc is missing" in str(refused.value)) is (floor != "vm")
    assert ("not in this version" in str(refused.value)) is (floor in ("wasm", "bubblewrap"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_without_a_jail_nothing_is_left_open(
    image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setattr(qemu, "binary", lambda: "/usr/bin/true")
    jail._bwrap.cache_clear()
    before = len(list(Path("/proc/self/fd").iterdir()))
    groups = list(cgroup.ROOT.glob(f"*/{cgroup.NAME}-{os.getpid()}-*"))
    try:
        with pytest.raises(NoIsolation, match="bubblewrap is missing"):
            Vm.boot(Machine("tcg", 128 << 20), image, SandboxPolicy())
    finally:
        jail._bwrap.cache_clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(cgroup.ROOT.glob(f"*/{cgroup.NAME}-{os.getpid()}-*")) == groups


def test_an_old_emulator_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / qemu.BINARY
    old.write_text("#!/bin/sh\necho QEMU emulator version 7.2.18\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    qemu.binary.cache_clear()
    try:
        with pytest.raises(NoIsolation, match=r"7\.2"):
            qemu.binary()
    finally:
        monkeypatch.undo()
        qemu.binary.cache_clear()


def test_a_device_node_proves_nothing(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a guest that answers does, within its time; and the answer is kept."""
    tmp_path.chmod(0o700)
    asked = []

    def boot(*_: Any, within_s: float) -> Vm:
        asked.append(within_s)
        raise GuestFailed(f"the guest was not up in {within_s:g} s")

    monkeypatch.setattr(qemu, "KVM", tmp_path / "kvm")
    machine, policy = Machine("kvm", 128 << 20), SandboxPolicy()
    assert "there is no" in probe(machine, image, policy, tmp_path)
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(tiers.Vm, "boot", boot)
    for _ in range(2):
        assert probe(machine, image, policy, tmp_path) == "the guest was not up in 5 s"
    assert asked == [5.0]
