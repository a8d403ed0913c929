"""In a container, where gVisor or a cluster isolates: runs one program per frame.

The same frames as in the virtual machine, from standard input and to standard output; the end of
the input is the end of it all. It has no right that the program lacks, so there is no control
group: the kernel's limits per process, and those of the container, are what holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import struct
import sys
import threading

from vauban.agents.guest import agent

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
OWN_THREADS = 3  # of the program's user: this process, its thread, and the first process
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Container(agent.Group):
    """What holds a program with all its processes: here a PID namespace."""

    python = sys.executable

    def __init__(self) -> None:
        super().__init__()
        self.before_s = 0.0

    def prepare(self, limits: agent.Limits) -> None:
        """Empty writable places; what was there is gone."""
        for place, _ in agent.DISKS:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
        self.renew(limits)
        self.limits = limits

    def fit(self, limits: agent.Limits) -> None:
        """The limits of a container are those that it was started with."""

    def renew(self, limits: agent.Limits) -> None:  # noqa: ARG002
        """Counters start anew."""
        self.before_s += self.spent_s()

    def enter(self, limits: agent.Limits) -> None:
        agent.LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own entries in /proc are root's
        for what, most in (
            (resource.RLIMIT_AS, limits["memory_bytes"]),
            (resource.RLIMIT_NPROC, limits["processes"] + OWN_THREADS),
        ):
            resource.setrlimit(what, (most, most))

    def ending(self, pid: int) -> int:
        ended, tell = os.pipe()  # gVisor has no pidfd_open
        threading.Thread(target=tell_end, args=(pid, tell)).start()
        return ended

    def spent_s(self) -> float:
        """Without children that nobody has waited for, whose parent ignores SIGCHLD."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        running = sum(sum(times(pid)) for pid in others()) / TICKS_A_SECOND
        return ended.ru_utime + ended.ru_stime + running - self.before_s

    def end(self, pid: int) -> int:
        os.kill(-1, signal.SIGKILL)  # all but this one and the first
        return agent.wait_for_all(pid)

    def out_of_memory(self) -> bool:
        return False


def tell_end(pid: int, tell: int) -> None:
    """Close a descriptor when a process has ended; whoever waits for it, waits for it still."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.close(tell)


def others() -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid not in (1, os.getpid())]


def times(pid: int) -> tuple[int, ...]:
    """User and system time of a process and of the children that it has waited for, in ticks."""
    try:
        fields = agent.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return tuple(map(int, fields[11:15]))
    except (OSError, ValueError):
        return ()


def main() -> None:
    if __name__ not in agent.read("/proc/1/cmdline"):  # whose processes it would kill
        sys.exit("this is for a container that was started with it")
    agent.LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    agent.LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program is the same user
    for stream in (0, 1):
        os.set_blocking(stream, True)  # gVisor's are not, where they are one socket
    group = Container()
    port = sys.stdin.buffer
    while len(head := port.read(4)) == 4:
        (length,) = struct.unpack(">I", head)
        job = json.loads(port.read(length))
        if job["prepare"]:
            group.prepare(job["limits"])
            agent.write_frame(1, {"ready": True})
        else:
            agent.write_frame(1, agent.run(job, group))
