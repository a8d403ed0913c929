"""gVisor as isolation: taken only by name, tight, and held to the same limits as a machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vauban.agents import cgroup
from vauban.agents.frames import Job, Reason, Result
from vauban.agents.gvisor import Container, bundle, command
from vauban.agents.sandbox import Sandbox
from vauban.agents.tiers import choose
from vauban.errors import GuestFailed, ImageError, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

NO_IMAGE = Path("/nonexistent")


@pytest.fixture(scope="module")
def root(image_directory: Path) -> Iterator[Path]:
    """The guest's image, unpacked where the unprivileged user of runsc can read it."""
    place = Path(tempfile.mkdtemp(prefix="vauban-test-root-"))
    place.chmod(0o755)
    extract = ["fsck.erofs", f"--extract={place}/root", str(image_directory / "root.erofs")]
    subprocess.run(extract, check=True, capture_output=True)
    yield place / "root"
    shutil.rmtree(place)


@pytest.fixture
def policy(root: Path) -> SandboxPolicy:
    return SandboxPolicy(
        floor="gvisor", gvisor_root=root, image=NO_IMAGE, wall_s=60, cpu_s=60, pool=0
    )


Contained = Callable[..., Result]


@pytest.fixture
def contained(policy: SandboxPolicy) -> Contained:
    def run(code: str, job: Job | None = None, **limits: int) -> Result:
        guest = Container(policy.model_copy(update=limits))
        try:
            return guest.run(job or Job(code.encode()))
        finally:
            guest.kill()

    return run


def left_behind() -> tuple[int, list[Path], list[Path]]:
    """What an end that was no end would leave: descriptors, files and control groups."""
    files = list(Path(tempfile.gettempdir()).glob("vauban-gvisor-*"))
    groups = list(cgroup.ROOT.glob(f"**/{cgroup.NAME}-{os.getpid()}-*"))
    return len(list(Path("/proc/self/fd").iterdir())), files, groups


def test_the_floor_is_lowered_by_name_or_not_at_all(policy: SandboxPolicy, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        choose(policy.model_copy(update={"floor": "vm"}), tmp_path)
    for floor in ("gvisor", "wasm", "bubblewrap"):
        tier = choose(policy.model_copy(update={"floor": floor}), tmp_path)
        assert tier.name == "gvisor"
        assert "no guest image" in tier.passed_over[0]


def test_what_is_missing_is_named(
    policy: SandboxPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for update, what in (
        ({"gvisor_root": None}, "sandbox.gvisor_root names no"),
        ({"gvisor_root": tmp_path / "none"}, "is no directory"),
        ({"gvisor_root": Path("/")}, "the host's own root"),
        ({"gvisor_root": Path("/usr/..")}, "the host's own root"),
    ):
        with pytest.raises(NoIsolation, match=what):
            choose(policy.model_copy(update=update), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(cgroup, "version", lambda: "none")
        with pytest.raises(NoIsolation, match="no control group"):
            choose(policy, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoIsolation, match="runsc is missing"):
        choose(policy, tmp_path)


def test_the_bundle_gives_a_program_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.chdir("/")
    made = bundle(SandboxPolicy(gvisor_root=Path("srv/root"), disk_mb=3))
    assert made["root"] == {"path": "/srv/root", "readonly": True}
    process = made["process"]
    assert process["user"] == {"uid": 65_534, "gid": 65_534}
    assert process["noNewPrivileges"] is True
    assert not any(process["capabilities"].values())
    assert "hunter2" not in json.dumps(made)
    assert {mount["type"] for mount in made["mounts"]} == {"proc", "tmpfs"}
    assert all(
        f"size={3 << 20}" in mount["options"]
        for mount in made["mounts"]
        if mount["type"] == "tmpfs"
    )
    assert {space["type"] for space in made["linux"]["namespaces"]} >= {"pid", "network", "mount"}
    assert all("path" not in space for space in made["linux"]["namespaces"])
    assert max(map(len, process["args"])) < 128 << 10, "the kernel takes no longer argument"


def test_the_command_line_has_no_network_and_no_debugging() -> None:
    line = command(Path("/place"))
    assert line[-3:] == ["run", "--bundle=/place", "place"]
    assert {"--network=none", "--rootless", "--overlay2=none", "--host-uds=none"} <= set(line)
    assert not [word for word in line if "debug" in word or "strace" in word or "unsafe" in word]


def test_the_canary_passes_and_programs_run(policy: SandboxPolicy) -> None:
    before = left_behind()
    with Sandbox(policy.model_copy(update={"pool": 1, "per": "session"})) as sandbox:
        job = Job(b"print(open('d').read())\nopen('o', 'w').write('x')", {"d": b"in"}, ("o", "no"))
        result = sandbox.run(job, "a")
        assert (result.tier, result.reason, result.out) == ("gvisor", Reason.EXITED, b"in\n")
        assert (result.files, set(result.missing)) == ({"o": b"x"}, {"no"})
        listing = Job(b"import os, sys\nprint(sorted(os.listdir()))\nsys.exit(3)")
        again = sandbox.run(listing, "a")
        assert (again.out, again.status) == (b"['d', 'main.py', 'o']\n", 3)
        assert sandbox.run(listing, "b").out == b"['main.py']\n"
        assert sandbox.pool.wait_full(60)
        assert sandbox.run(listing).out == b"['main.py']\n"
    assert left_behind() == before


# Each child uses little, and ends.
CHILDREN = """
import os, signal, time
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        os._exit(0)
    os.wait()
"""
UNSEEN = CHILDREN.replace(
    "while True:", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:", 1
)
UNSEEN = UNSEEN.replace("os.wait()", "time.sleep(0.1)")


@pytest.mark.parametrize(
    ("code", "limits", "reason"),
    [
        (CHILDREN, {"cpu_s": 1}, Reason.CPU_LIMIT),
        (UNSEEN, {"cpu_s": 1}, Reason.CPU_LIMIT),
        ("import time\ntime.sleep(99)", {"wall_s": 1}, Reason.TIME_LIMIT),
        ("while True: pass", {"cpu_s": 1}, Reason.CPU_LIMIT),
        ("while True: print('x' * 9999)", {}, Reason.OUTPUT_LIMIT),
        ("import os\nos.kill(os.getpid(), 9)", {}, Reason.SIGNALLED),
    ],
)
def test_a_program_ends_at_its_limits(
    contained: Contained, code: str, limits: dict[str, int], reason: Reason
) -> None:
    result = contained(code, **limits)
    assert result.reason is reason
    assert result.status == 137
    assert len(result.out) <= SandboxPolicy().max_output_bytes


BOMBS = """
import os

def attempt(name, work):
    try:
        work()
    except (OSError, MemoryError) as error:
        print(name, type(error).__name__, getattr(error, "errno", ""))

def write(name, size):
    with open(name, "wb") as stream:
        stream.write(bytes(size))

def fork():
    for count in range(100):
        if os.fork() == 0:
            import time
            time.sleep(99)

attempt("memory", lambda: bytearray(200 << 20))
attempt("file", lambda: write("large", 3 << 20))
attempt("disk", lambda: [write(str(n), 1 << 20) for n in range(9)])
attempt("fork", fork)
"""


def test_bombs_do_not_go_off(contained: Contained) -> None:
    result = contained(BOMBS, disk_mb=8, max_file_mb=2, max_processes=8)
    assert result.reason is Reason.EXITED, result.err
    assert result.out.decode().splitlines() == [
        "memory MemoryError ",
        "file OSError 27",
        "disk OSError 28",
        "fork BlockingIOError 11",
    ]


def test_a_program_that_ends_its_own_container_is_an_answer(contained: Contained) -> None:
    result = contained("import os\nos.kill(1, 9)\nopen('/x')")
    assert result.reason is Reason.GUEST_LOST or result.err


def test_files_beyond_the_disk_are_an_answer(contained: Contained) -> None:
    files = {str(number): b"x" for number in range(60)}  # a page for each
    result = contained("", Job(b"print(1)", files | {"last": bytes((1 << 20) - 4096)}), disk_mb=1)
    assert (result.reason, result.out) == (Reason.DISK_LIMIT, b"")


def test_a_container_that_does_not_start_leaves_nothing(
    policy: SandboxPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left_behind()
    with pytest.raises(GuestFailed, match="gVisor does not start"):
        Container(policy.model_copy(update={"gvisor_root": tmp_path / "none"}))
    with pytest.raises(NoIsolation, match="can't be checked"):
        Sandbox(policy.model_copy(update={"gvisor_root": tmp_path}))
    monkeypatch.setattr(cgroup, "new_group", lambda *_: None)
    with pytest.raises(GuestFailed, match="no control group"):
        Container(policy)
    assert left_behind() == before


def test_nothing_outlives_a_parent_that_was_killed(policy: SandboxPolicy) -> None:
    code = (
        "import sys, time\n"
        "from vauban.agents.frames import Job, job_frame\n"
        "from vauban.agents.gvisor import Container\n"
        "from vauban.policy_sandbox import SandboxPolicy\n"
        "policy = SandboxPolicy.model_validate_json(sys.argv[1])\n"
        "guest = Container(policy)\n"
        "guest._port.sendall(job_frame(Job(b'while True: pass'), policy))\n"
        "print(guest._place, guest._jailed.group.places[0], flush=True)\n"
        "time.sleep(99)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, policy.model_dump_json()], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        place, group = parent.stdout.readline().split()
        parent.send_signal(signal.SIGKILL)
    try:
        deadline = time.monotonic() + 30
        while (held := Path(group, "cgroup.procs").read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not held
    finally:
        shutil.rmtree(place)
        cgroup.sweep()
    assert not Path(group).exists()
