"""Run the benchmarks that this machine can run, one after the other.

python -m benchmarks.run [--quick] [--only NAME ...]

Writes benchmarks/results/NAME.json (with --quick: NAME-quick.json). Exit code 1 when a target does
not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks.provenance import load
from benchmarks.results import Result
from rich.console import Console

from benchmarks import (
    cobatch,
    encoder_latency,
    extraction_cost,
    extraction_gpu,
    front_overhead,
    gpu_cobatch,
    memory,
    sandbox_start,
    sanitize_throughput,
    screening_cost,
    serving,
    triton_latency,
    vs_proxy,
)

BENCHMARKS: dict[str, Callable[[list[str]], Result | None]] = {
    "front_overhead": front_overhead.main,
    "sanitize_throughput": lambda _: sanitize_throughput.main(),
    "encoder_latency": encoder_latency.main,
    "screening_cost": screening_cost.main,
    "extraction_cost": extraction_cost.main,
    "extraction_gpu": extraction_gpu.main,
    "cobatch": cobatch.main,
    "vs_proxy": vs_proxy.main,
    "serving": serving.main,
    "memory": memory.main,
    "triton_latency": triton_latency.main,
    "gpu_cobatch": gpu_cobatch.main,
    "sandbox_start": sandbox_start.main,
}
BUSY = 0.5
"""Load average above which another program is taking a good part of a core."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes, coarse numbers")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    arguments = parser.parse_args()
    console = Console(width=130)
    if load()[0] > BUSY:
        console.print(f"[yellow]The machine is busy (load {load()[0]}): expect noise.[/yellow]")
    flags = ["--quick"] if arguments.quick else []
    missed = 0
    for name in arguments.only:
        console.rule(name)
        result = BENCHMARKS[name](flags)
        missed += sum(m.met is False for m in result.measures) if result else 0
    console.print(f"{missed} targets missed" if missed else "All targets hold.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
