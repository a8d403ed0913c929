"""One virtual machine in its jail: boot it or restore it, run programs in it, kill it."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import Final

from vauban.agents import jail, qemu
from vauban.agents.guests import Guest
from vauban.agents.image import Image, seal
from vauban.agents.qemu import Machine, Monitor, Wiring
from vauban.errors import GuestFailed, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

BOOT_S: Final = 300.0
MONITOR_S: Final = 30.0
IDLE_CPU_S: Final = 300


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A virtual machine that waits for its first program: descriptors of its memory and its state,
    both sealed."""

    memory: int
    state: int

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.state)


class Vm(Guest):
    """A virtual machine that waits for programs."""

    def __init__(
        self, machine: Machine, image: Image, policy: SandboxPolicy, snapshot: Snapshot | None
    ) -> None:
        own, port = socket.socketpair()
        super().__init__("vm-hw" if machine.accelerator == "kvm" else "vm-tcg", policy, own)
        ours, monitor = socket.socketpair()
        ours.settimeout(MONITOR_S)
        self._monitor = Monitor(ours)
        self._memory = -1 if snapshot is not None else _new_memory(machine.memory_bytes)
        memory = self._memory if snapshot is None else snapshot.memory
        wiring = Wiring(memory, port.fileno(), monitor.fileno())
        inherited = (memory, port.fileno(), monitor.fileno(), *image.files.values())
        try:
            self._jailed = jail.start(
                qemu.command(machine, image, wiring, restore=snapshot is not None),
                memory_bytes=machine.memory_bytes,
                cpu_s=policy.wall_s + IDLE_CPU_S,
                descriptors=inherited,
                devices=machine.devices,
            )
        except (NoIsolation, OSError):
            self._close()
            raise
        finally:
            port.close()
            monitor.close()

    @classmethod
    def boot(
        cls, machine: Machine, image: Image, policy: SandboxPolicy, within_s: float = BOOT_S
    ) -> Vm:
        """Start from nothing, and wait until the guest is ready.

        :raises GuestFailed: it did not come up; says what the emulator said.
        """
        deadline = time.monotonic() + within_s
        vm = cls(machine, image, policy, None)
        try:
            vm._expect_ready(deadline)
            vm._monitor.greet()
            vm.prepare(deadline)
        except TimeoutError:
            raise GuestFailed(f"the guest was not up in {within_s:g} s{vm.kill()}") from None
        except GuestFailed as error:
            raise GuestFailed(f"{error}{vm.kill()}") from None
        return vm

    @classmethod
    def restore(
        cls, machine: Machine, image: Image, policy: SandboxPolicy, snapshot: Snapshot
    ) -> Vm:
        """Start a clone of a snapshot. It waits for a program, which brings it fresh entropy.

        :raises GuestFailed: it can't be restored.
        """
        state = os.open(f"/proc/self/fd/{snapshot.state}", os.O_RDONLY)
        try:
            vm = cls(machine, image, policy, snapshot)
            try:
                vm._monitor.greet()
                vm._share_no_memory()
                vm._monitor.hand_over("state", state)
                vm._monitor.execute("migrate-incoming", uri="fd:state")
                vm._wait_for("inmigrate")
                vm._monitor.execute("cont")
            except GuestFailed as error:
                raise GuestFailed(f"{error}{vm.kill()}") from None
        finally:
            os.close(state)
        vm._monitor.close()
        return vm

    def snapshot(self) -> Snapshot:
        """Stop, and keep memory and state. The machine is gone afterwards.

        :raises GuestFailed: the emulator can't write its state.
        """
        state = os.memfd_create("state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            self._share_no_memory()
            self._monitor.execute("stop")
            self._monitor.hand_over("state", state)
            self._monitor.execute("migrate", uri="fd:state")
            deadline = time.monotonic() + MONITOR_S
            while (told := self._monitor.execute("query-migrate")).get("status") != "completed":
                if told.get("status") == "failed" or time.monotonic() > deadline:
                    raise GuestFailed("the emulator can't write its state")
                time.sleep(0.01)
            memory = os.dup(self._memory)
        except GuestFailed as error:
            os.close(state)
            raise GuestFailed(f"{error}{self.kill()}") from None
        self.kill()
        seal(state)
        seal(memory)
        return Snapshot(memory, state)

    @property
    def alive(self) -> bool:
        return self._jailed.process.poll() is None

    @property
    def limited_by(self) -> str:
        """What limits the emulator: its control group, or resource limits only."""
        return self._jailed.limited_by

    def kill(self) -> str:
        """SIGKILL. What the emulator last complained of, for an error."""
        said = self._jailed.end()
        self._close()
        return said

    def _share_no_memory(self) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        self._monitor.execute("migrate-set-capabilities", capabilities=[capability])

    def _wait_for(self, state: str) -> None:
        deadline = time.monotonic() + MONITOR_S
        while self._monitor.execute("query-status").get("status") == state:
            if time.monotonic() > deadline:
                raise GuestFailed("the snapshot can't be loaded")
            time.sleep(0.002)

    def _close(self) -> None:
        self._monitor.close()
        self._port.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


def _new_memory(size_bytes: int) -> int:
    descriptor = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    return descriptor
