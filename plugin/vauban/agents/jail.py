"""The jail around the emulator: bubblewrap, a system call filter, limits, and another user.

QEMU says of itself that its emulation (TCG) is no security boundary. So a guest that has taken over
its emulator must find nothing there: no network, no file but the emulator's own, no other process,
no right, and few system calls.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from vauban.agents import cgroup
from vauban.agents.seccomp import emulator_filter
from vauban.errors import NoIsolation

NOBODY: Final = 65_534
VISIBLE: Final = ("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/share/qemu", "/usr/share/seabios")
OVERHEAD_BYTES: Final = 512 << 20
"""Memory of an emulator besides its guest's: translated code, devices, the program itself."""
MAX_PROCESSES: Final = 64
MAX_OPEN_FILES: Final = 256


@dataclass(slots=True)
class Jailed:
    """A running jail. `process` is bubblewrap; what it holds dies with it."""

    process: subprocess.Popen[bytes]
    group: cgroup.Group | None
    limited_by: str = field(default="rlimits")

    def kill(self) -> None:
        """SIGKILL, and wait until all of it is gone. May be called again."""
        self.process.kill()
        self.process.wait()
        if self.group is not None:
            self.group.remove()
        for stream in (self.process.stdin, self.process.stderr):
            if stream is not None:
                stream.close()

    def end(self) -> str:
        """Kill it. What it last complained of, for an error."""
        stderr = self.process.stderr
        said = b""
        if stderr is not None and not stderr.closed:
            self.process.kill()
            os.set_blocking(stderr.fileno(), False)
            said = stderr.read(4096) or b""
        self.kill()
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        return f" ({last[0][:200]})" if last else ""


def jail_arguments(filter_fd: int, devices: Sequence[Path] = ()) -> list[str]:
    """bubblewrap's part of the command line.

    :param devices: nodes that the program needs, such as /dev/kvm.
    """
    arguments = [
        _bwrap(), "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1",
        "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL", "--clearenv",
        "--setenv", "PATH", "/usr/bin", "--hostname", "sandbox",
    ]  # fmt: skip
    for path in VISIBLE:
        arguments += ["--ro-bind-try", path, path]
    for name in ("bin", "lib", "lib64"):
        arguments += ["--symlink", f"usr/{name}", f"/{name}"]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for device in devices:
        arguments += ["--dev-bind", str(device), str(device)]
    return [*arguments, "--remount-ro", "/dev", "--remount-ro", "/", "--seccomp", str(filter_fd)]


def start(
    command: Sequence[str],
    *,
    memory_bytes: int,
    cpu_s: int,
    descriptors: Sequence[int] = (),
    devices: Sequence[Path] = (),
) -> Jailed:
    """Start a program in the jail.

    :param memory_bytes: of the guest; the emulator gets `OVERHEAD_BYTES` more.
    :param cpu_s: processor time after which the kernel ends it, in seconds.
    :param descriptors: what it inherits besides the standard streams.
    :raises NoIsolation: bubblewrap or libseccomp is missing, or can't be used.
    """
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: 4 * (memory_bytes + OVERHEAD_BYTES),
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 2 * memory_bytes,
    }
    filter_fd = emulator_filter()
    try:
        arguments = jail_arguments(filter_fd, devices)
        return spawn(
            [*_limited(limits), *arguments, "--", *command],
            cgroup.new_group(memory_bytes + OVERHEAD_BYTES, MAX_PROCESSES),
            pass_fds=(*descriptors, filter_fd),
            **another_user(devices),
        )
    finally:
        os.close(filter_fd)


def spawn(command: Sequence[str], group: cgroup.Group | None, /, **options: Any) -> Jailed:
    """Start a command that is in its control group from the beginning.

    :param options: those of `subprocess.Popen`; it has no environment, and its standard input and
        output are empty unless they say otherwise.
    :raises NoIsolation: it can't be started, or not in the group, which is then removed.
    """
    try:
        process: subprocess.Popen[bytes] = _SPAWNER.submit(
            _popen, [*_WHEN_TOLD, *command], **options
        ).result()
    except OSError as error:
        if group is not None:
            group.remove()
        raise NoIsolation(f"the jail can't be started: {error.strerror}") from None
    jailed = Jailed(process, group)
    try:
        if group is not None:
            group.add(process.pid)
            jailed.limited_by = f"cgroup {cgroup.version()}"
        if process.stdin is not None:
            process.stdin.write(b"\n")
            process.stdin.close()
    except OSError as error:
        jailed.kill()
        raise NoIsolation(f"the jail can't be limited: {error.strerror}") from None
    return jailed


def _popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the jail's own command line
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        start_new_session=True,
        **{"stdout": subprocess.DEVNULL, **options},
    )


# It must be in its control group before it has children, which would stay outside.
_WHEN_TOLD: Final = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh")

# The kernel ends a jail (--die-with-parent) when the *thread* that started it ends. This one lives
# as long as the process.
_SPAWNER: Final = ThreadPoolExecutor(1, thread_name_prefix="vauban-jail")


def _limited(limits: Mapping[int, int]) -> list[str]:
    names = {
        resource.RLIMIT_CPU: "cpu",
        resource.RLIMIT_AS: "as",
        resource.RLIMIT_NOFILE: "nofile",
        resource.RLIMIT_CORE: "core",
        resource.RLIMIT_FSIZE: "fsize",
    }
    return ["/usr/bin/prlimit", *(f"--{names[what]}={most}" for what, most in limits.items())]


def another_user(devices: Sequence[Path] = ()) -> dict[str, Any]:
    """Options of `subprocess.Popen`. Root starts nothing as root: bubblewrap reads files by the
    rights of who started it."""
    if os.geteuid() != 0:
        return {}
    groups = {path.stat().st_gid for path in devices if path.exists()} - {0}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": sorted(groups)}


@lru_cache(maxsize=1)
def _bwrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise NoIsolation("bubblewrap is missing; install the package bubblewrap")
    return found
