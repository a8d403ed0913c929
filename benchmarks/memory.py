"""How much memory the guard adds to each process of the server.

The same vLLM with the guard and without it (vauban not installed), started in turns. After a
fixed load, the resident and the proportional set size of every process. Without a GPU the worker
holds the encoder in float32; on a GPU half of that, on the GPU.

python -m benchmarks.memory [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from benchmarks.cobatch import POLICY, policy_arguments
from benchmarks.load import closed_loop
from benchmarks.results import Measure, Result
from benchmarks.servers import Server, guarded_vllm, plain_vllm
from rich.console import Console

CLIENTS, REQUESTS = 16, 256
SETTLE_S = 3.0
TARGETS_MB = {"API server": 200.0, "worker": 250.0, "engine core": None}
MB = 1e6

Sizes = dict[str, dict[str, float]]


def sizes(server: Server) -> Sizes:
    """RSS and PSS in megabytes by the role of the process, after a fixed load."""
    closed_loop(server.url, CLIENTS, REQUESTS)
    time.sleep(SETTLE_S)
    found: Sizes = {}
    for process in (server.root, *server.children()):
        role = "API server" if process.pid == server.process.pid else _role(process)
        if role:
            memory = process.memory_full_info()
            found[role] = {"RSS": memory.rss / MB, "PSS": memory.pss / MB}
    assert found.keys() == TARGETS_MB.keys(), found
    return found


def _role(process: psutil.Process) -> str | None:
    """By the title that vLLM gives its processes."""
    title = process.name() + " ".join(process.cmdline())
    if "Worker" in title:
        return "worker"
    return "engine core" if "EngineCore" in title else None


def _measures(plain: list[Sizes], guarded: list[Sizes]) -> Iterator[Measure]:
    for role, target in TARGETS_MB.items():
        for kind in ("RSS", "PSS"):
            base = statistics.median(s[role][kind] for s in plain)
            yield Measure(
                f"{role} added {kind}", "MB", tuple(s[role][kind] - base for s in guarded),
                baseline=base, at_most=target if kind == "RSS" else None,
            )  # fmt: skip


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(argv).quick
    repeats = 1 if quick else 3
    plain: list[Sizes] = []
    guarded: list[Sizes] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            with plain_vllm(Path(scratch)) as server:
                plain.append(sizes(server))
            audit = {"audit": {"log": str(Path(scratch) / "audit.jsonl")}}
            flags = policy_arguments({**POLICY, **audit})
            with guarded_vllm(Path(scratch), flags) as server:
                guarded.append(sizes(server))
    result = Result(
        "memory", {"repeats": repeats, "clients": CLIENTS, "requests": REQUESTS}, POLICY,
        list(_measures(plain, guarded)),
    )  # fmt: skip
    result.show(Console(width=130))
    result.write(suffix="-quick" if quick else "")
    return result


if __name__ == "__main__":
    main()
