"""gVisor as isolation: a kernel in user space (`runsc`) between the program and the host's.

Weaker than a virtual machine, so taken only where the policy lowers the floor by name and no
virtual machine works. One container per guest, by `runsc run` on a bundle of ours: no network, a
read-only root, small writable places in memory, no right, no variable of the host. runsc runs as an
unprivileged user, in a control group; where none can be made, there is no such tier.

Options as of runsc 20221219 (Debian 12), 20240729 (its backports) and of its sources of 2026.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from vauban.agents import cgroup, jail
from vauban.agents.frames import Job, Reason, Result
from vauban.agents.guest_source import boot_command
from vauban.agents.guests import Guest, Tier
from vauban.errors import GuestFailed, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

NAME: Final = "gvisor"
BINARY: Final = "runsc"
START_S: Final = 30.0
OVERHEAD_BYTES: Final = 64 << 20
"""Memory of runsc itself, besides the program's."""
HOST_PROCESSES: Final = 512
"""Threads and processes on the host: runsc's own, and one or two for each of the program's."""
HOST_CPU: Final = 1.25
"""Processor time on the host for each second of the program's: runsc works for it, too."""
HOST_CPU_S: Final = 1.0
TICK_S: Final = 0.25
PREFIX: Final = "vauban-gvisor-"
PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_SAFE: Final = ["nosuid", "nodev"]


def tier(policy: SandboxPolicy, passed_over: tuple[str, ...]) -> Tier:
    """:raises NoIsolation: runsc, its root or control groups are missing; says which."""
    if shutil.which(BINARY) is None:
        raise NoIsolation(f"{BINARY} is missing; see https://gvisor.dev/docs/user_guide/install")
    if policy.gvisor_root is None:
        raise NoIsolation("sandbox.gvisor_root names no directory with a root file system")
    if not policy.gvisor_root.is_dir():
        raise NoIsolation(f"{policy.gvisor_root} (sandbox.gvisor_root) is no directory")
    if policy.gvisor_root.samefile("/"):
        raise NoIsolation("sandbox.gvisor_root is the host's own root, and would show its files")
    if cgroup.version() == "none":
        raise NoIsolation("no control group can be made here, and nothing else limits its memory")
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = left.name.split("-")[2]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Tier(NAME, Container, passed_over=passed_over)


def bundle(policy: SandboxPolicy) -> dict[str, Any]:
    """The container's `config.json`, by the OCI runtime specification."""
    disk = f"size={policy.disk_mb << 20}"
    places = [("/work", "mode=0700"), ("/tmp", "mode=1777"), ("/dev/shm", "mode=1777")]  # noqa: S108
    nobody = {"uid": jail.NOBODY, "gid": jail.NOBODY}
    owner = [f"{name}={number}" for name, number in nobody.items()]
    kinds = ("bounding", "effective", "inheritable", "permitted", "ambient")
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": str(Path(policy.gvisor_root or "").resolve()), "readonly": True},
        "process": {
            "terminal": False,
            "user": nobody,
            "args": boot_command(),
            "env": [f"PATH={PATH}", "LANG=C.UTF-8"],
            "cwd": "/work",
            "capabilities": {kind: [] for kind in kinds},
            "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": _SAFE},
            *(
                {
                    "destination": place,
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": [*_SAFE, disk, mode, *owner],
                }
                for place, mode in places
            ),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        },
    }


def command(place: Path) -> list[str]:
    """runsc's command line. Its standard input is its standard output, which is the port.

    :param place: a directory with `config.json`; runsc's state goes there too.
    """
    return [
        # The kernel ends runsc, and runsc its sandbox, when the process that started it ends.
        "/usr/bin/setpriv", "--pdeathsig", "KILL",
        "/bin/sh", "-c", 'exec "$@" <&1', "sh",
        shutil.which(BINARY) or BINARY,
        f"--root={place}/state", "--rootless", "--network=none", "--overlay2=none",
        "--host-uds=none", "--host-fifo=none", "--ignore-cgroups",
        # Of a name of its own: older versions put its control socket under that name for the host.
        "run", f"--bundle={place}", place.name,
    ]  # fmt: skip


class Container(Guest):
    """A container of gVisor's, started anew and ready for a program.

    :raises GuestFailed: it does not come up; says what runsc said.
    """

    def __init__(self, policy: SandboxPolicy) -> None:
        own, port = socket.socketpair()
        super().__init__(NAME, policy, own)
        self._place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._jailed: jail.Jailed | None = None
        self._killing = threading.Lock()
        try:
            (self._place / "config.json").write_text(json.dumps(bundle(policy)))
            (self._place / "state").mkdir(mode=0o700)
            user = jail.another_user()
            for path in (self._place, *self._place.iterdir()) if user else ():
                os.chown(path, jail.NOBODY, jail.NOBODY)
            group = cgroup.new_group((policy.memory_mb << 20) + OVERHEAD_BYTES, HOST_PROCESSES)
            if group is None:
                raise NoIsolation("no control group can be made")
            self._jailed = jail.spawn(command(self._place), group, stdout=port, **user)
            port.close()  # else its end would not be seen
            self.prepare(time.monotonic() + START_S)
        except (GuestFailed, NoIsolation, TimeoutError, OSError) as error:
            raise GuestFailed(f"gVisor does not start: {error}{self.kill()}") from None
        finally:
            port.close()

    def run(self, job: Job, started: float | None = None) -> Result:
        """See `Guest.run`. The guest does not see the processor time of children that nobody waits
        for; the control group does."""
        ended = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            exceeded = threads.submit(self._ended_by_cpu, ended)
            try:
                result = super().run(job, started)
            finally:
                ended.set()
        if exceeded.result() and result.reason is Reason.GUEST_LOST:
            return replace(result, reason=Reason.CPU_LIMIT)
        return result

    def _ended_by_cpu(self, ended: threading.Event) -> bool:
        """Kill the container once it is over its processor time; whether it was."""
        before = self._spent_s()
        most = before + HOST_CPU * self._policy.cpu_s + HOST_CPU_S
        while not ended.wait(TICK_S):
            if self._spent_s() > most:
                self.kill()
                return True
        return False

    def _spent_s(self) -> float:
        group = self._jailed.group if self._jailed is not None else None
        return (group.spent_s() if group is not None else None) or 0.0

    @property
    def alive(self) -> bool:
        return self._jailed is not None and self._jailed.process.poll() is None

    def kill(self) -> str:
        """SIGKILL to runsc and all that is in its control group; its files are removed."""
        with self._killing:
            said = self._jailed.end() if self._jailed is not None else ""
            self._port.close()
            shutil.rmtree(self._place, ignore_errors=True)
        return said
