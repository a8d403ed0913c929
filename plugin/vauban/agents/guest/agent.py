"""The guest's first process: runs one program per frame that comes through the virtio port.

A frame is a 4-byte big-endian length and that many bytes of JSON. Before anything else of a frame
is looked at, the kernel's random numbers are seeded with the host's: clones of one snapshot would
all draw the same ones. Only light modules are imported: an emulated processor is slow.
"""

from __future__ import annotations

import binascii
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import stat
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Limits = dict[str, Any]

WORK = "/work"
DISKS = ((WORK, "0700"), ("/tmp", "1777"), ("/dev/shm", "1777"))  # noqa: S108
NOBODY = 65_534
CGROUPS = "/run/cgroup"
GROUP = f"{CGROUPS}/program"
RESERVE_BYTES = 12 << 20  # for the agent and the kernel: only the program runs out of memory
CHUNK = 65_536
TICK_MS = 250
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MNT_DETACH = 2, 4, 8, 4096, 2
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
PR_SET_NO_NEW_PRIVS = 38
SETTINGS = {
    "kernel/dmesg_restrict": "1",
    "kernel/kptr_restrict": "2",
    "kernel/perf_event_paranoid": "3",
    "kernel/unprivileged_bpf_disabled": "2",
    "kernel/kexec_load_disabled": "1",
    "kernel/modules_disabled": "1",
    "kernel/sysrq": "0",
    "kernel/yama/ptrace_scope": "2",
    "user/max_user_namespaces": "0",
    "vm/panic_on_oom": "0",
}
HIDDEN = ("cmdline", "kallsyms", "iomem", "kcore", "sysrq-trigger")
OPEN_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": WORK, "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108
NO_ROOM = {"out": "", "err": "", "reason": "disk_limit", "status": 126 << 8, "files": {}}
LIBC = ctypes.CDLL(None, use_errno=True)


class Captured:
    """What the program wrote, and why it ended. At most `room` bytes more are taken."""

    def __init__(self, room: int) -> None:
        self.out = bytearray()
        self.err = bytearray()
        self.reason = "exited"
        self.room = room

    def take(self, descriptor: int, into: bytearray) -> bool:
        """Take what is there; False at the end of the stream."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return True
        into += data[: self.room]
        if len(data) > self.room:
            self.reason = "output_limit"
        self.room = max(0, self.room - len(data))
        return bool(data)


def read(path: str) -> str:
    with open(path) as stream:
        return stream.read()


def write(path: str, text: str) -> None:
    with open(path, "w") as stream:
        stream.write(text)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2).

    :raises OSError: it failed.
    """
    texts = [text.encode() for text in (source, target, kind, options)]
    if LIBC.mount(*texts[:3], flags, texts[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def set_up() -> None:
    """Mounts and kernel settings of the guest, once."""
    safe = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("proc", "/proc", "proc", safe, "hidepid=2")
    mount("run", "/run", "tmpfs", safe, "size=64k,mode=0700")
    os.mkdir(CGROUPS)
    mount("cgroup", CGROUPS, "cgroup2", safe)
    write(f"{CGROUPS}/cgroup.subtree_control", "+memory +pids +cpu")
    for name, value in SETTINGS.items():
        if os.path.exists(f"/proc/sys/{name}"):
            write(f"/proc/sys/{name}", value)
    for name in HIDDEN:
        if os.path.exists(f"/proc/{name}"):
            mount("/dev/null", f"/proc/{name}", "", MS_BIND)
    with os.scandir("/dev") as devices:
        for device in devices:
            if not device.is_symlink() and not device.is_dir():
                os.chmod(device.path, 0o666 if device.name in OPEN_DEVICES else 0o600)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    os.symlink("/proc/self/fd", "/dev/fd")
    os.mkdir("/dev/shm")  # noqa: S108
    write("/proc/self/oom_score_adj", "-1000")


class Group:
    """What holds a program with all its processes: here a control group."""

    python = "/usr/bin/python3"

    def __init__(self) -> None:
        self.limits: Limits = {}

    def prepare(self, limits: Limits) -> None:
        """Empty writable places and a new control group; what was there is gone."""
        fresh_disks(limits["disk_bytes"])
        self.renew(limits)
        self.limits = limits

    def fit(self, limits: Limits) -> None:
        """Prepare anew if what is there was made under other limits."""
        if any(self.limits[name] != limits[name] for name in ("disk_bytes", "processes")):
            self.prepare(limits)

    def renew(self, limits: Limits) -> None:
        """A control group for one program, with counters of its own."""
        if os.path.exists(GROUP):
            os.rmdir(GROUP)
        os.mkdir(GROUP)
        lines = read("/proc/meminfo").splitlines()
        free_kb = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        write(f"{GROUP}/memory.max", str(max(free_kb * 1024 - RESERVE_BYTES, 16 << 20)))
        write(f"{GROUP}/memory.oom.group", "1")
        write(f"{GROUP}/pids.max", str(limits["processes"]))

    def enter(self, limits: Limits) -> None:  # noqa: ARG002
        write(f"{GROUP}/cgroup.procs", "0")

    def ending(self, pid: int) -> int:
        """A descriptor that is ready when the process has ended."""
        return os.pidfd_open(pid)

    def spent_s(self) -> float:
        """Processor time of all the program's processes, in seconds."""
        return int(read(f"{GROUP}/cpu.stat").split()[1]) / 1e6

    def end(self, pid: int) -> int:
        """Kill every process of the program; its own wait status."""
        write(f"{GROUP}/cgroup.kill", "1")
        return wait_for_all(pid)

    def out_of_memory(self) -> bool:
        return "oom_kill 0" not in read(f"{GROUP}/memory.events")


def fresh_disks(limit_bytes: int) -> None:
    for place, mode in DISKS:
        LIBC.umount2(place.encode(), MNT_DETACH)
        options = f"size={limit_bytes},nr_inodes=8192,mode={mode},uid={NOBODY},gid={NOBODY}"
        mount("disk", place, "tmpfs", MS_NOSUID | MS_NODEV, options)


def reseed(entropy: bytes) -> None:
    """Mix the host's entropy into the kernel's generator, and have it draw a new key at once."""
    pool = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
    descriptor = os.open("/dev/urandom", os.O_RDWR)
    fcntl.ioctl(descriptor, RNDADDENTROPY, pool)
    fcntl.ioctl(descriptor, RNDRESEEDCRNG)
    os.close(descriptor)


def become_program(job: dict[str, Any], out: int, err: int, group: Group) -> None:
    """The child: give up every right, then be the program. Never returns."""
    try:
        limits = job["limits"]
        group.enter(limits)
        write("/proc/self/oom_score_adj", "1000")
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 256)
        os.chdir(WORK)
        for what, most in (
            (resource.RLIMIT_CPU, limits["cpu_s"]),
            (resource.RLIMIT_FSIZE, limits["file_bytes"]),
            (resource.RLIMIT_NOFILE, 256),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
        ):
            resource.setrlimit(what, (most, most))
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.umask(0o077)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execve(group.python, ["python3", "-B", job["program"]], ENVIRONMENT)  # noqa: S606
    finally:
        os._exit(126)


def watch(
    pid: int, pipes: dict[int, bytearray], captured: Captured, limits: Limits, group: Group
) -> None:
    """Collect the output until the program ends or is over a limit."""
    ended = group.ending(pid)
    poll = select.poll()
    for descriptor in (*pipes, ended):
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + limits["wall_s"]
    while captured.reason == "exited":
        ready = {descriptor for descriptor, _ in poll.poll(TICK_MS)}
        for descriptor in ready & pipes.keys():
            if not captured.take(descriptor, pipes[descriptor]):
                poll.unregister(descriptor)
        if ended in ready:
            break
        if time.monotonic() > deadline:
            captured.reason = "time_limit"
        elif group.spent_s() > limits["cpu_s"]:
            captured.reason = "cpu_limit"
    os.close(ended)


def wait_for_all(pid: int) -> int:
    """Wait until no process is left; the wait status of one of them."""
    own = 0
    try:
        while True:
            found, status = os.wait()
            if found == pid:
                own = status
    except ChildProcessError:
        return own


def run(job: dict[str, Any], group: Group) -> dict[str, Any]:
    """Run the program of a frame; the answer's fields."""
    limits = job["limits"]
    group.fit(limits)
    try:
        for name, data in job["files"].items():
            put(name, binascii.a2b_base64(data))
    except OSError:
        missing = dict.fromkeys(job["results"], "Not made")
        return NO_ROOM | {"wall_s": 0, "cpu_s": 0, "missing": missing}
    if group.spent_s():
        group.renew(limits)  # one before it in the same session; its counters are not this one's
    out, err = os.pipe(), os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        become_program(job, out[1], err[1], group)
    captured = Captured(limits["output_bytes"])
    pipes = {out[0]: captured.out, err[0]: captured.err}
    for read_end, write_end in (out, err):
        os.close(write_end)
        os.set_blocking(read_end, False)
    watch(pid, pipes, captured, limits, group)
    status = group.end(pid)
    wall_s, cpu_s = time.monotonic() - started, group.spent_s()
    for descriptor, into in pipes.items():
        while captured.room and select.select([descriptor], [], [], 0)[0]:
            if not captured.take(descriptor, into):
                break
        os.close(descriptor)
    files, missing = results(job["results"], limits["result_bytes"])
    return {
        "out": encoded(captured.out),
        "err": encoded(captured.err),
        "reason": reason(captured.reason, status, cpu_s, limits["cpu_s"], group),
        "status": status,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "files": files,
        "missing": missing,
    }


def reason(known: str, status: int, cpu_s: float, most_cpu_s: int, group: Group) -> str:
    """Why the program ended, as far as its wait status and the kernel's counters tell."""
    if group.out_of_memory():
        return "memory_limit"
    if known != "exited" or not os.WIFSIGNALED(status):
        return known
    # The soft limit is the hard one, so the kernel sends SIGKILL.
    if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) and cpu_s >= most_cpu_s - 1:
        return "cpu_limit"
    return "signalled"


def put(name: str, data: bytes) -> None:
    """Write a file for the program. What one before it left there is replaced, not followed."""
    path = f"{WORK}/{name}"
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "wb") as stream:
        os.fchown(stream.fileno(), NOBODY, NOBODY)
        stream.write(data)


def results(names: list[str], room: int) -> tuple[dict[str, str], dict[str, str]]:
    """The files that were asked for, at most `room` bytes; and why others are not there. Follows
    no link."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            descriptor = os.open(f"{WORK}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            missing[name] = os.strerror(error.errno or 0)
            continue
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            missing[name] = "Not a regular file"
        elif status.st_size > room:
            missing[name] = "Too large"
        else:
            with open(descriptor, "rb", closefd=False) as stream:
                data = stream.read(room)
            room -= len(data)
            found[name] = encoded(data)
        os.close(descriptor)
    return found, missing


def encoded(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def read_exactly(port: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = os.read(port, min(count - len(data), CHUNK))
        if not part:
            time.sleep(0.01)  # the host's end is not open
        data += part
    return bytes(data)


def write_frame(port: int, fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    rest = memoryview(struct.pack(">I", len(body)) + body)
    while rest:
        rest = rest[os.write(port, rest) :]


def open_port() -> int:
    """The only way in and out. The kernel makes its node a moment after the driver is loaded."""
    while True:
        for name in os.listdir("/dev"):
            if name.startswith("vport"):
                return os.open(f"/dev/{name}", os.O_RDWR)
        time.sleep(0.01)


def main() -> None:
    port = open_port()
    set_up()
    group = Group()
    write_frame(port, {"ready": True})
    while True:
        (length,) = struct.unpack(">I", read_exactly(port, 4))
        job = json.loads(read_exactly(port, length))
        reseed(binascii.a2b_base64(job["entropy"]))
        time.clock_settime_ns(time.CLOCK_REALTIME, job["time_ns"])
        if job["prepare"]:
            group.prepare(job["limits"])
            write_frame(port, {"ready": True})
        else:
            write_frame(port, run(job, group))


if __name__ == "__main__":
    main()
