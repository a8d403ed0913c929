"""Which isolation this machine has. A weaker kind is never taken silently.

`vm-hw`: a virtual machine by the processor's own means. That the device /dev/kvm is there, and even
that it answers, says nothing: on some hosts no guest kernel comes up on it. So a guest is booted.
`vm-tcg`: the same guest on an emulated processor, in the jail. Nothing else is implemented; without
either, nothing runs. Plain processes of the host, containers that share its kernel, and Pyodide are
no tiers at all.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vauban.agents import qemu
from vauban.agents.image import Image
from vauban.agents.qemu import Machine
from vauban.agents.template import is_private, template, template_key
from vauban.agents.vm import Snapshot, Vm
from vauban.errors import GuestFailed, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

PROBE_S: Final = 5.0
VM_HW: Final = "vm-hw"
VM_TCG: Final = "vm-tcg"


@dataclass(frozen=True, slots=True)
class Tier:
    """An isolation that works here: its name, its machine, and a snapshot to start clones from.
    `passed_over`: why each better one was not taken."""

    name: str
    machine: Machine
    snapshot: Snapshot
    passed_over: tuple[str, ...] = ()


def choose(image: Image, policy: SandboxPolicy, cache: Path) -> Tier:
    """The best isolation that works.

    :raises NoIsolation: none does; says why for each.
    """
    memory = policy.memory_mb << 20
    passed_over: list[str] = []
    hardware = Machine("kvm", memory)
    refused = probe(hardware, image, policy, cache)
    if not refused:
        try:
            return Tier(VM_HW, hardware, template(hardware, image, policy, cache))
        except GuestFailed as error:
            refused = str(error)
    passed_over.append(f"{VM_HW}: {refused}")
    emulated = Machine("tcg", memory)
    try:
        snapshot = template(emulated, image, policy, cache)
        return Tier(VM_TCG, emulated, snapshot, tuple(passed_over))
    except (GuestFailed, NoIsolation) as error:
        passed_over.append(f"{VM_TCG}: {error}")
    if policy.floor != "vm":
        passed_over.append(f"{policy.floor}: not in this version of vauban")
    raise NoIsolation("code can't be run in isolation here. " + "; ".join(passed_over))


def probe(machine: Machine, image: Image, policy: SandboxPolicy, cache: Path) -> str:
    """Why no guest comes up on the processor's own virtualisation; empty if one does.

    The answer is kept until the next start of the host, for this image and emulator.
    """
    if not qemu.KVM.exists():
        return f"there is no {qemu.KVM}"
    try:
        key = template_key(machine, image)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        known = cache / f"probe-{key}.json"
        try:
            kept = json.loads(known.read_text()) if is_private(cache) else {}
            if kept.get("boot") == boot and kept.get("user") == os.geteuid():
                return str(kept["refused"])
        except (OSError, ValueError, KeyError, AttributeError):
            pass
        refused = _booted(machine, image, policy)
    except NoIsolation as error:
        return str(error)
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_private(cache):
            known.write_text(json.dumps({"boot": boot, "user": os.geteuid(), "refused": refused}))
    except OSError:
        pass
    return refused


def _booted(machine: Machine, image: Image, policy: SandboxPolicy) -> str:
    try:
        Vm.boot(machine, image, policy, within_s=PROBE_S).kill()
    except GuestFailed as error:
        return str(error)
    return ""
