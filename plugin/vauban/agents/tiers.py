"""Which isolation this machine has. A weaker kind is never taken silently.

`vm-hw`: a virtual machine by the processor's own means. That the device /dev/kvm is there, and even
that it answers, says nothing: on some hosts no guest kernel comes up on it. So a guest is booted.
`vm-tcg`: the same guest on an emulated processor, in the jail. `gvisor`: only where the policy
lowers the floor. Without any, nothing runs. Where the policy says so, a cluster is asked instead of
all of these. Plain processes of the host, containers that share its kernel, and Pyodide are no
tiers at all.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vauban.agents import gvisor, qemu
from vauban.agents.guests import Tier
from vauban.agents.image import Image, default_directory, load_image
from vauban.agents.qemu import Machine
from vauban.agents.template import is_private, template, template_key
from vauban.agents.vm import Vm
from vauban.errors import GuestFailed, ImageError, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

PROBE_S: Final = 5.0
VM_HW: Final = "vm-hw"
VM_TCG: Final = "vm-tcg"


def choose(policy: SandboxPolicy, cache: Path) -> Tier:
    """The best isolation that works.

    :param cache: directory for snapshots of virtual machines.
    :raises ImageError: there is no image for a virtual machine, and nothing else is allowed.
    :raises NoIsolation: none works; says why for each.
    """
    if policy.runner == "kubernetes":
        try:
            from vauban.agents import pods
        except ModuleNotFoundError as error:
            raise NoIsolation(
                f"{error.name} is missing; pip install 'vauban[kubernetes]'"
            ) from None
        return pods.tier(policy)
    try:
        return _machine(policy, cache)
    except (ImageError, NoIsolation) as error:
        if policy.floor == "vm":
            raise
        passed_over = (f"a virtual machine: {error}",)
    try:
        return gvisor.tier(policy, passed_over)
    except NoIsolation as error:
        refused = [*passed_over, f"gvisor: {error}"]
    if policy.floor != "gvisor":
        refused.append(f"{policy.floor}: not in this version of vauban")
    raise NoIsolation("code can't be run in isolation here. " + "; ".join(refused))


def _machine(policy: SandboxPolicy, cache: Path) -> Tier:
    """Virtual machines, of the better kind that works."""
    image = load_image(policy.image or default_directory())
    memory = policy.memory_mb << 20
    passed_over: list[str] = []
    hardware = Machine("kvm", memory)
    with ExitStack() as held:
        held.callback(image.close)
        refused = probe(hardware, image, policy, cache)
        for name, machine in ((VM_HW, hardware), (VM_TCG, Machine("tcg", memory))):
            if name == VM_TCG or not refused:
                try:
                    tier = _clones(name, machine, image, policy, cache, tuple(passed_over))
                    held.pop_all()
                    return tier
                except (GuestFailed, NoIsolation) as error:
                    refused = str(error)
            passed_over.append(f"{name}: {refused}")
    raise NoIsolation("no virtual machine comes up here. " + "; ".join(passed_over))


def _clones(
    name: str,
    machine: Machine,
    image: Image,
    policy: SandboxPolicy,
    cache: Path,
    passed_over: tuple[str, ...],
) -> Tier:
    snapshot = template(machine, image, policy, cache)

    def start(limits: SandboxPolicy) -> Vm:
        return Vm.restore(machine, image, limits, snapshot)

    def close() -> None:
        snapshot.close()
        image.close()

    return Tier(name, start, close, passed_over)


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
