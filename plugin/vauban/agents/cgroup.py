"""A control group around one emulator: memory, processes and processor, where the machine lets us.

Version 2, or version 1 with one hierarchy for each controller. Where neither can be written (a user
without a delegated group), the resource limits of the jail are what holds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
NAME: Final = "vauban-sandbox"
PERIOD_US: Final = 100_000
_REMOVE_TRIES: Final = 50


@dataclass(frozen=True, slots=True)
class Group:
    """Directories of one group: one in version 2, one per controller in version 1."""

    places: tuple[Path, ...]

    def add(self, pid: int) -> None:
        """Move a process into the group.

        :raises OSError: it is gone, or may not be moved.
        """
        for place in self.places:
            (place / "cgroup.procs").write_text(str(pid))

    def spent_s(self) -> float | None:
        """Processor time of all that was in the group, in seconds; None where nothing tells."""
        for place in self.places:
            with contextlib.suppress(OSError):
                return int((place / "cpuacct.usage").read_text()) / 1e9
            with contextlib.suppress(OSError):
                name, _, spent = (place / "cpu.stat").read_text().partition("\n")[0].partition(" ")
                if name == "usage_usec":
                    return int(spent) / 1e6
        return None

    def remove(self) -> None:
        """Kill what is left in the group, and remove it."""
        for place in self.places:
            for _ in range(_REMOVE_TRIES):
                try:
                    for pid in (place / "cgroup.procs").read_text().split():
                        if pid != "0":  # of another PID namespace; kill(2) takes it for our own
                            os.kill(int(pid), signal.SIGKILL)
                    place.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)


def version() -> str:
    """`v2`, `v1`, or `none` where this process can make no groups."""
    if (ROOT / "cgroup.controllers").exists():
        parent = _own_v2()
        usable = parent is not None and os.access(parent, os.W_OK)
        return "v2" if usable else "none"
    usable = all(os.access(ROOT / kind, os.W_OK) for kind in ("memory", "pids", "cpu"))
    return "v1" if usable else "none"


def new_group(memory_bytes: int, processes: int) -> Group | None:
    """A new, empty group for one processor's worth of time, or None where none can be made."""
    name = f"{NAME}-{os.getpid()}-{secrets.token_hex(4)}"
    kind = version()
    try:
        if kind == "v2":
            parent = _own_v2()
            if parent is None:
                return None
            settings: dict[str, int | str] = {
                "memory.max": memory_bytes,
                "memory.swap.max": 0,
                "pids.max": processes,
                "cpu.max": f"{PERIOD_US} {PERIOD_US}",
            }
            return Group((_made(parent / name, settings),))
        if kind == "v1":
            quota = {"cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": PERIOD_US}
            places = [
                _made(ROOT / "memory" / name, {"memory.limit_in_bytes": memory_bytes}),
                _made(ROOT / "pids" / name, {"pids.max": processes}),
                _made(ROOT / "cpu" / name, quota),
            ]
            if os.access(ROOT / "cpuacct", os.W_OK) and not (ROOT / "cpuacct" / name).exists():
                places.append(_made(ROOT / "cpuacct" / name, {}))  # else the one of `cpu`, or none
            return Group(tuple(places))
    except OSError:
        return None
    return None


def sweep() -> None:
    """Remove groups of processes of ours that are gone."""
    bases = [ROOT / kind for kind in ("memory", "pids", "cpu", "cpuacct")]
    own = _own_v2()
    for base in [*bases, *([own] if own is not None else [])]:
        for place in base.glob(f"{NAME}-*"):
            owner = place.name.split("-")[-2]
            if owner.isdecimal() and not Path("/proc", owner).exists():
                Group((place,)).remove()


def _made(place: Path, settings: Mapping[str, int | str]) -> Path:
    """:raises OSError: also where a controller is not there: half a limit is none."""
    place.mkdir()
    try:
        for name, value in settings.items():
            with (place / name).open("r+") as stream:
                stream.write(str(value))
    except OSError:
        place.rmdir()
        raise
    return place


def _own_v2() -> Path | None:
    """The group that ours may be made in: the one that holds this process's own."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/"):
            own = ROOT / line[4:]
            # A group that holds processes can't hand out controllers, its parent may.
            return own.parent if line != "0::/" else own
    return None
