"""How long a small program takes in the sandbox, from the call to its result.

Restored: a clone is started from the snapshot for it. Pool: a clone is ready that has run another
program. Both run a new `python3`. Cold: a guest is booted. On the kind of virtual machine that
works here.

python -m benchmarks.sandbox_start [--quick]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import closing

from benchmarks.results import Measure, Result
from rich.console import Console

from vauban.agents.frames import Job, Reason
from vauban.agents.image import default_directory, load_image
from vauban.agents.qemu import Machine
from vauban.agents.sandbox import Sandbox
from vauban.agents.tiers import VM_HW
from vauban.agents.vm import Vm
from vauban.policy_sandbox import SandboxPolicy

RUNS, QUICK_RUNS = 20, 5
RESTORED_MS, POOL_MS = 1000.0, 300.0
FULL_S = 600.0
JOB = Job(b"print(6 * 7)\n")


def repeated(runs: int, work: Callable[[], float]) -> tuple[float, ...]:
    return tuple(work() * 1000 for _ in range(runs))


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args(argv)
    runs = QUICK_RUNS if arguments.quick else RUNS
    policy = SandboxPolicy(pool=0, wall_s=60, cpu_s=60)

    def timed(sandbox: Sandbox) -> float:
        result = sandbox.run(JOB)
        assert (result.reason, result.out) == (Reason.EXITED, b"42\n")
        return result.total_s

    def from_pool(sandbox: Sandbox) -> float:
        assert sandbox.pool.wait_full(FULL_S)
        return timed(sandbox)

    with Sandbox(policy, canary=False) as sandbox:
        tier = sandbox.tier.name
        restored = repeated(runs, lambda: timed(sandbox))

    def cold() -> float:
        started = time.monotonic()
        vm = Vm.boot(machine, image, policy)
        vm.run(JOB)
        vm.kill()
        return time.monotonic() - started

    machine = Machine("kvm" if tier == VM_HW else "tcg", policy.memory_mb << 20)
    with closing(load_image(default_directory())) as image:
        booted = repeated(1 if arguments.quick else 3, cold)
    with Sandbox(policy.model_copy(update={"pool": 1}), canary=False) as sandbox:
        warm = repeated(runs, lambda: from_pool(sandbox))
    result = Result("sandbox_start", {"tier": tier, "runs": runs, "program": "print(6 * 7)"})
    result.measures = [
        Measure("restored", "ms", restored, at_most=RESTORED_MS),
        Measure("from the pool", "ms", warm, at_most=POOL_MS),
        Measure("cold", "ms", booted),
    ]
    load = os.getloadavg()
    result.notes.append(f"load average during the run: {load[0]:.1f} (1 min), {load[1]:.1f} (5)")
    result.show(Console(width=130))
    result.write(suffix="-quick" if arguments.quick else "")
    return result


if __name__ == "__main__":
    main()
