"""Snapshots of a booted guest, kept on disk, so that a program starts in a second and not in ten.

A directory of this user only, with the memory, the state and their SHA-256. One that is not as it
was written, or that others could write, is not used; then a guest is booted anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from vauban.agents import qemu
from vauban.agents.frames import Job
from vauban.agents.image import Image, sealed_copy
from vauban.agents.qemu import Machine
from vauban.agents.vm import BOOT_S, Snapshot, Vm
from vauban.errors import ImageError
from vauban.policy_sandbox import SandboxPolicy

WARM_UP: Final = Job(b"import json, math, random, re, sys, time\nprint(6 * 7)\n")
"""What a guest runs before its snapshot is taken, so that the files it needs are in its memory."""
MAX_TEMPLATES: Final = 4
_NAMES: Final = ("memory", "state")
_CHUNK: Final = 1 << 20


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/vauban/sandbox`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "vauban/sandbox"


def template(machine: Machine, image: Image, policy: SandboxPolicy, cache: Path) -> Snapshot:
    """A snapshot of this machine with this image, from the cache or made now.

    :raises GuestFailed: the guest can't be booted or stopped.
    :raises NoIsolation: the jail or the emulator is not there.
    """
    place = cache / template_key(machine, image)
    found = _load(place)
    if found is not None:
        return found
    snapshot = make(machine, image, policy)
    _save(snapshot, place)
    return snapshot


def make(machine: Machine, image: Image, policy: SandboxPolicy) -> Snapshot:
    """Boot a guest, warm it up, and take its snapshot.

    :raises GuestFailed: it can't be booted or stopped.
    """
    patient = policy.model_copy(update={"wall_s": 60, "cpu_s": 60})
    vm = Vm.boot(machine, image, patient)
    try:
        for _ in range(2):
            vm.run(WARM_UP)
        vm.prepare(time.monotonic() + BOOT_S)
        return vm.snapshot()
    finally:
        vm.kill()


def template_key(machine: Machine, image: Image) -> str:
    """What a snapshot is good for: this image on this emulator and this kind of processor."""
    path = Path(qemu.binary())
    parts: dict[str, Any] = {
        "image": image.digest,
        "accelerator": machine.accelerator,
        "memory": machine.memory_bytes,
        "emulator": [str(path), path.stat().st_size, path.stat().st_mtime_ns],
        "code": [hashlib.sha256(Path(m).read_bytes()).hexdigest() for m in (qemu.__file__,)],
    }
    if machine.accelerator == "kvm":
        parts["processor"] = _processor()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def is_private(directory: Path) -> bool:
    """Whether nobody else could have written there."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model", "flags"))}))


def _load(place: Path) -> Snapshot | None:
    if not (is_private(place.parent) and is_private(place)):
        return None
    loaded: dict[str, int] = {}
    try:
        digests = json.loads((place / "digests.json").read_text())
        for name in _NAMES:
            loaded[name], found = sealed_copy(place / name)
            if found != digests[name]:
                raise ImageError(f"{place / name} was changed")
        os.utime(place)
    except (OSError, ValueError, TypeError, KeyError, ImageError):
        for descriptor in loaded.values():
            os.close(descriptor)
        return None
    return Snapshot(loaded["memory"], loaded["state"])


def _save(snapshot: Snapshot, place: Path) -> None:
    """Keep it for other processes; where that can't be done, they make their own."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_private(place.parent):
            return
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as work:
            made = Path(work) / "template"
            made.mkdir(mode=0o700)
            digests = {
                name: _write(descriptor, made / name)
                for name, descriptor in zip(_NAMES, (snapshot.memory, snapshot.state), strict=True)
            }
            (made / "digests.json").write_text(json.dumps(digests))
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
        known = [p for p in place.parent.iterdir() if p.is_dir() and not p.name.startswith(".")]
        for old in sorted(known, key=lambda p: p.stat().st_mtime)[:-MAX_TEMPLATES]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return


def _write(descriptor: int, path: Path) -> str:
    """Write sealed memory to a file with holes for its empty parts; its SHA-256."""
    digest = hashlib.sha256()
    size = os.fstat(descriptor).st_size
    with path.open("wb") as stream:
        for start in range(0, size, _CHUNK):
            data = os.pread(descriptor, _CHUNK, start)
            digest.update(data)
            if data.count(0) == len(data):
                stream.seek(len(data), os.SEEK_CUR)
            else:
                stream.write(data)
        stream.truncate(size)
    path.chmod(0o400)
    return digest.hexdigest()
