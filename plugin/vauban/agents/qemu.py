"""QEMU's command line, and the few commands of its monitor (QMP) that are needed.

One command line for the hardware's virtualisation (KVM) and for emulation (TCG). There is no
network device in it, and no other device than a read-only disk and one port.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from vauban.agents.image import Image
from vauban.errors import GuestFailed, NoIsolation

Accelerator = Literal["kvm", "tcg"]

BINARY: Final = "qemu-system-x86_64"
AT_LEAST: Final = (8, 2)
KVM: Final = Path("/dev/kvm")
MAX_QMP_BYTES: Final = 1 << 20
_RDTSC: Final = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"  # rdtsc; rdx<<32 | rax; ret


@dataclass(frozen=True, slots=True)
class Machine:
    """What a virtual machine is made of; the same for a template and its clones."""

    accelerator: Accelerator
    memory_bytes: int

    @property
    def devices(self) -> tuple[Path, ...]:
        return (KVM,) if self.accelerator == "kvm" else ()


@dataclass(frozen=True, slots=True)
class Wiring:
    """Descriptors that the emulator inherits: its memory, its port and its monitor."""

    memory: int
    port: int
    monitor: int


def command(machine: Machine, image: Image, wiring: Wiring, *, restore: bool) -> list[str]:
    """QEMU's command line.

    :param restore: wait for a snapshot over the monitor, with `wiring.memory` as its memory, which
        is mapped privately and can't be written; otherwise boot, and write into that memory.
    :raises NoIsolation: QEMU is missing or too old.
    """
    memory = (
        f"memory-backend-file,id=ram0,size={machine.memory_bytes},mem-path={_fd(wiring.memory)}"
    )
    memory += ",share=off,readonly=on,rom=off" if restore else ",share=on"
    if machine.accelerator == "kvm":
        accelerator, processor = "kvm", "host,migratable=on"
    else:
        accelerator, processor = "tcg,thread=single,tb-size=64", "max"
    arguments = [
        binary(),
        "-M", "microvm,x-option-roms=off,auto-kernel-cmdline=on,rtc=on,isa-serial=off,"
              "memory-backend=ram0",
        "-bios", "qboot.rom",
        "-accel", accelerator,
        "-cpu", processor,
        "-m", f"size={machine.memory_bytes >> 20}M",
        "-smp", "1",
        "-object", memory,
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-kernel", _fd(image.files["vmlinux"]),
        "-initrd", _fd(image.files["initrd.cpio"]),
        "-append", boot_line(machine.accelerator),
        "-drive", f"id=root,file={_fd(image.files['root.erofs'])},format=raw,if=none,readonly=on,"
                  "file.locking=off",
        "-device", "virtio-blk-device,drive=root",
        "-device", "virtio-serial-device,max_ports=2",
        "-chardev", f"socket,id=port,fd={wiring.port}",
        "-device", "virtserialport,chardev=port,name=job,nr=1",
        "-chardev", f"socket,id=monitor,fd={wiring.monitor}",
        "-mon", "chardev=monitor,mode=control",
    ]  # fmt: skip
    return [*arguments, "-incoming", "defer"] if restore else arguments


def boot_line(accelerator: Accelerator) -> str:
    """The guest kernel's command line. Nothing in it may be secret."""
    words = ["quiet", "loglevel=1", "reboot=t", "panic=-1", "no_timer_check"]
    words += ["random.trust_cpu=on", "rdinit=/init", "cryptomgr.notests"]
    if accelerator == "tcg":
        # On a busy machine the kernel's own measurement of the clock hangs most boots.
        words.append(f"tsc_early_khz={clock_khz()}")
    return " ".join(words)


def _fd(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


@lru_cache(maxsize=1)
def binary() -> str:
    """The path of a QEMU that is new enough.

    :raises NoIsolation: there is none.
    """
    path = shutil.which(BINARY)
    if path is None:
        raise NoIsolation(f"{BINARY} is missing; setup/apt-packages.txt names its package")
    if version(path) < AT_LEAST:
        found = ".".join(map(str, version(path)))
        raise NoIsolation(
            f"{BINARY} is {found}; 8.2 or later is needed (Debian 12 has it in its backports)"
        )
    return path


@lru_cache(maxsize=4)
def version(path: str) -> tuple[int, int]:
    """Major and minor version; (0, 0) if it can't be told."""
    try:
        told = subprocess.run(  # noqa: S603 - the emulator that was found on PATH
            [path, "--version"], env={}, capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    found = re.search(r"version (\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@lru_cache(maxsize=1)
def clock_khz() -> int:
    """Frequency of the processor's time stamp counter, which emulation passes on, in kHz."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return _told_khz()
    page.write(_RDTSC)
    view = ctypes.c_char.from_buffer(page)
    ticks = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(view))
    started, first = time.perf_counter_ns(), ticks()
    time.sleep(0.05)
    ended, last = time.perf_counter_ns(), ticks()
    return int((last - first) * 1_000_000 / (ended - started))


def _told_khz() -> int:
    found = re.search(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return int(float(found[1]) * 1000) if found else 2_000_000


class Monitor:
    """A connection to QEMU's monitor. What it says is not trusted."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = connection.makefile("rb")

    def greet(self) -> None:
        """:raises GuestFailed: the emulator does not answer as one."""
        self._answer("QMP")
        self.execute("qmp_capabilities")

    def execute(self, name: str, **arguments: Any) -> Any:
        """:raises GuestFailed: the command failed, or nothing came within the socket's timeout."""
        self._send(name, arguments, ())
        return self._answer("return")

    def hand_over(self, name: str, descriptor: int) -> None:
        """Give the emulator a descriptor, under a name."""
        self._send("getfd", {"fdname": name}, (descriptor,))
        self._answer("return")

    def close(self) -> None:
        self._read.close()
        self._connection.close()

    def _send(self, name: str, arguments: Mapping[str, Any], fds: tuple[int, ...]) -> None:
        data = json.dumps({"execute": name, "arguments": arguments}).encode()
        try:
            socket.send_fds(self._connection, [data], fds)
        except OSError:
            raise GuestFailed("the emulator does not take commands") from None

    def _answer(self, wanted: str) -> Any:
        while True:
            try:
                line = self._read.readline(MAX_QMP_BYTES)
                said = json.loads(line)
            except (OSError, ValueError, RecursionError):
                raise GuestFailed("the emulator does not answer") from None
            if not isinstance(said, dict):
                raise GuestFailed("the emulator answers nonsense")
            if wanted in said:
                return said[wanted]
            if "error" in said:
                raise GuestFailed(f"the emulator refuses: {str(said['error'])[:200]!r}")
