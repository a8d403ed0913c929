"""What a program can't do in the sandbox, tried on the real tier of this machine.

Probes reach only for listeners that these tests started on loopback. Those that read are also run
without the sandbox, to show that they would find something; those that write never are.
"""

from __future__ import annotations

import ast
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import ATTEMPTS

from vauban.agents.frames import Job, Reason, Result
from vauban.agents.sandbox import Sandbox

Limited = Callable[..., Result]

READ_PROBES = (
    ATTEMPTS
    + """
def connect(family, kind, address):
    s = socket.socket(family, kind)
    s.settimeout(2)
    s.connect(address)
    s.send(b"hello")
    return "open"

attempt("tcp", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", PORT)))
attempt("abstract", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + NAME))
attempt("path socket", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, FOLDER + "/socket"))
attempt("file", lambda: open(FOLDER + "/sentinel").read())
attempt("environment", lambda: os.environ.get("SANDBOX_SENTINEL", "not there"))
attempt("boot id", lambda: open("/proc/sys/kernel/random/boot_id").read().strip())
attempt("kernel", lambda: os.uname().release)
attempt("boot line", lambda: open("/proc/cmdline").read())
print(found)
"""
)
GUEST_PROBES = (
    ATTEMPTS
    + """

def write(path):
    with open(path, "w") as stream:
        stream.write("x")
    return "open"

def datagram():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT))

attempt("udp", datagram)
attempt("ipv6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).connect(("::1", PORT)))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM) and "open")
attempt("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and "open")
attempt("first environment", lambda: open("/proc/1/environ").read())
attempt("first root", lambda: os.listdir("/proc/1/root"))
attempt("kernel log", lambda: open("/dev/kmsg").read(1))
attempt("kernel log call", lambda: call(103, 3, ctypes.create_string_buffer(100), 100))
attempt("disk", lambda: open("/dev/vda", "rb").read(1))
attempt("port", lambda: [open("/dev/" + n, "rb") for n in os.listdir("/dev") if "vport" in n])
attempt("memory", lambda: open("/dev/mem", "rb").read(1))
attempt("kcore", lambda: open("/proc/kcore", "rb").read(4))
attempt("root", lambda: write("/usr/x"))
attempt("agent", lambda: write("/usr/lib/vauban/agent.py"))
attempt("core pattern", lambda: write("/proc/sys/kernel/core_pattern"))
attempt("sysrq", lambda: write("/proc/sysrq-trigger"))
attempt("mount", lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0))
attempt("user namespace", lambda: call(272, 0x10000000))
attempt("ptrace", lambda: call(101, 16, 1, 0, 0))
attempt("kill first", lambda: os.kill(1, 9))
attempt("module", lambda: call(175, b"", 0, b""))
attempt("bpf", lambda: call(321, 5, 0, 0))
attempt("reboot", lambda: call(169, 0xfee1dead, 672274793, 0x1234567, 0))
attempt("be root", lambda: os.setuid(0))
attempt("cgroup", lambda: os.listdir("/run/cgroup"))
found["user"] = os.getuid(), os.getgid(), os.getgroups()
found["others"] = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
found["devices"] = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
status = open("/proc/self/status").read()
found["rights"] = [line.split()[1] for line in status.splitlines()
                   if line[:7] in ("CapEff:", "CapPrm:", "NoNewPr")]
found["descriptors"] = sorted(os.listdir("/proc/self/fd"))[:-1]
found["variables"] = sorted(os.environ)
print(found)
"""
)


def said(result: Result) -> dict[str, Any]:
    assert result.reason is Reason.EXITED, (result.summary(), result.err[-500:])
    found: dict[str, Any] = ast.literal_eval(result.out.decode())
    return found


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the host has to be found: listeners, a file that everybody may read, a variable."""
    folder = tmp_path_factory.mktemp("bait")
    word = secrets.token_hex(16)
    (folder / "sentinel").write_text(word)
    for place in (folder / "sentinel", folder, *folder.parents[:3]):
        place.chmod(0o755)
    name = f"vauban-test-{word}"
    abstract, path, tcp = (
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_UNIX),
        socket.create_server(("127.0.0.1", 0)),
    )
    abstract.bind(f"\0{name}")
    path.bind(str(folder / "socket"))
    (folder / "socket").chmod(0o777)
    listeners = [abstract, path, tcp]
    for each in listeners:
        each.listen()
        each.setblocking(False)
    constants = f"PORT, NAME, FOLDER = {tcp.getsockname()[1]}, {name!r}, {str(folder)!r}\n"
    os.environ["SANDBOX_SENTINEL"] = word
    yield {"constants": constants, "word": word, "listeners": listeners}
    del os.environ["SANDBOX_SENTINEL"]
    for each in listeners:
        each.close()


def contacts(bait: dict[str, Any]) -> int:
    """How many connections the listeners have had since they were asked last."""
    count = 0
    for listener in bait["listeners"]:
        try:
            while True:
                listener.accept()[0].close()
                count += 1
        except BlockingIOError:
            continue
    return count


def test_nothing_of_the_host_is_found(limited: Limited, bait: dict[str, Any]) -> None:
    program = bait["constants"] + READ_PROBES
    outside = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    control = ast.literal_eval(outside.stdout)
    assert contacts(bait) == 3  # the probes work
    assert control["file"] == control["environment"] == bait["word"]

    result = limited(program)
    found = said(result)
    assert contacts(bait) == 0
    assert bait["word"].encode() not in result.out
    for probe in ("tcp", "abstract", "path socket", "file"):
        assert found[probe].startswith("refused"), probe
    assert found["boot line"] == ""
    for told in ("boot id", "kernel"):
        assert found[told] != control[told]


def test_the_guest_gives_no_rights(limited: Limited, bait: dict[str, Any]) -> None:
    found = said(limited(bait["constants"] + GUEST_PROBES))
    assert found.pop("user") == (65534, 65534, [])
    assert found.pop("others") == []
    assert found.pop("devices") == ["lo"]
    assert found.pop("rights") == ["0000000000000000", "0000000000000000", "1"]
    assert found.pop("descriptors") == ["0", "1", "2"]
    assert set(found.pop("variables")) <= {"HOME", "LANG", "LC_CTYPE", "PATH", "TMPDIR"}
    # An empty file stands before these two.
    assert found.pop("kcore") in (b"", "refused: PermissionError")
    assert found.pop("sysrq") in ("open", "refused: PermissionError")
    still_open = {name: told for name, told in found.items() if "refused" not in str(told)}
    assert not still_open


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", Reason.TIME_LIMIT),
        (
            "import os, signal, time\n"
            "for n in range(1, 65):\n"
            "    try: signal.signal(n, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\n"
            "while True: time.sleep(100)\n",
            Reason.TIME_LIMIT,
        ),
        ("b = []\nwhile True: b.append(bytes(1 << 20))\n", Reason.MEMORY_LIMIT),
        ("import os\nwhile True: os.write(1, b'x' * 65536)\n", Reason.OUTPUT_LIMIT),
    ],
    ids=["loop", "signals ignored", "memory", "output"],
)
def test_a_bomb_is_ended(limited: Limited, code: str, reason: Reason) -> None:
    result = limited(
        code, wall_s=5 if reason is Reason.TIME_LIMIT else 60, max_output_bytes=100_000
    )
    assert result.reason is reason
    assert result.status == 128 + signal.SIGKILL
    assert len(result.out) + len(result.err) <= 100_000


def test_output_before_the_end_of_time_is_kept(limited: Limited) -> None:
    result = limited("import time\nprint('begun', flush=True)\ntime.sleep(100)\n", wall_s=8)
    assert result.reason is Reason.TIME_LIMIT
    assert result.out == b"begun\n"


def test_processor_time_is_limited_over_all_processes(limited: Limited) -> None:
    code = "import os\nfor _ in range(4): os.fork()\nwhile True: pass\n"
    assert limited(code, cpu_s=3).reason is Reason.CPU_LIMIT


def test_a_fork_bomb_and_what_it_leaves_die(limited: Limited) -> None:
    code = """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        made += 1
    except OSError:
        break
print(made)
"""
    result = limited(code)
    assert result.reason is Reason.EXITED  # although its children still sleep
    assert 16 <= int(result.out) < 32


def test_files_beyond_the_disk_are_an_answer(limited: Limited) -> None:
    files = {str(number): b"x" for number in range(60)}  # a page for each
    job = Job(b"print(1)", files | {"last": bytes((1 << 20) - 4096)}, ("made",))
    result = limited("", job, disk_mb=1)
    assert (result.reason, result.status, result.out) == (Reason.DISK_LIMIT, 126, b"")
    assert set(result.missing) == {"made"}


def test_the_disk_has_an_end(limited: Limited) -> None:
    code = """
def fill(path, size):
    try:
        with open(path, "wb") as stream:
            for _ in range(size):
                stream.write(bytes(1 << 20))
        return "open"
    except OSError as error:
        return error.errno
print([fill("big", 9), *(fill(f"/tmp/{n}", 4) for n in range(5))])
"""
    result = limited(code, disk_mb=16, max_file_mb=8)
    assert said_list(result)[0] == 27  # EFBIG
    assert 28 in said_list(result)  # ENOSPC


def said_list(result: Result) -> list[Any]:
    found: list[Any] = ast.literal_eval(result.out.decode())
    return found


def test_no_link_leads_a_result_out(limited: Limited) -> None:
    code = """
import os
os.symlink("/etc/passwd", "link")
os.mkdir("folder")
os.mkfifo("pipe")
os.symlink("/dev/zero", "zero")
open("large", "wb").write(bytes(2000))
open("right", "w").write("yes")
os.link("right", "twice")
"""
    names = ("link", "folder", "pipe", "zero", "large", "right", "twice", "gone")
    result = limited("", Job(code.encode(), results=names), max_result_bytes=1000)
    assert result.reason is Reason.EXITED, result.err
    assert result.files == {"right": b"yes", "twice": b"yes"}
    assert set(result.missing) == set(names) - {"right", "twice"}


def test_clones_share_no_random_numbers_and_no_data(sandbox: Sandbox) -> None:
    code = """
import os, random
print((os.urandom(16), open("/proc/sys/kernel/random/boot_id").read(), hash("a"), random.random(),
       id(object()), sorted(os.listdir("/work")), sorted(os.listdir("/tmp"))))
open("secret", "w").write("mine")
open("/tmp/secret", "w").write("mine")
"""
    told = [ast.literal_eval(sandbox.run(Job(code.encode())).out.decode()) for _ in range(2)]
    for position in range(4):
        assert told[0][position] != told[1][position], position
    for clone in told:
        assert clone[5:] == (["main.py"], [])


def test_the_clock_is_the_hosts(limited: Limited) -> None:
    before = time.time()
    told = float(limited("import time\nprint(time.time())\n").out)
    assert before - 5 < told < time.time() + 5


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def descendants(pid: int) -> set[int]:
    children: dict[int, set[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                stat = (place / "stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, set()).add(int(place.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        new = children.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def test_killing_a_machine_leaves_no_process_and_no_group(sandbox: Sandbox) -> None:
    vm = sandbox.clone()
    jail = vm._jailed.process.pid
    held = descendants(jail) | {jail}
    assert len(held) >= 2
    group = vm._jailed.group
    vm.kill()
    vm.kill()
    deadline = time.monotonic() + 30
    while any(map(alive, held)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, held))
    assert group is None or not any(place.exists() for place in group.places)


def test_kill_9_of_the_parent_takes_the_machine_along(sandbox: Sandbox, cache: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from vauban.agents.sandbox import Sandbox
from vauban.policy_sandbox import SandboxPolicy
sandbox = Sandbox(SandboxPolicy(pool=0), Path({str(cache)!r}), canary=False)
vm = sandbox.clone()
print(vm._jailed.process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        jail = int(parent.stdout.readline())
        held = descendants(jail) | {jail}
        assert len(held) >= 2
        parent.kill()
    deadline = time.monotonic() + 30
    while any(map(alive, held)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, held))
