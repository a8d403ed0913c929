"""What every training run tells of itself: commit, packages, hardware."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def run_facts(packages: Iterable[str]) -> dict[str, object]:
    """Commit, versions and hardware of this process; a package that is not installed is None."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": _commit(),
        "packages": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "hardware": {
            "machine": platform.machine(),
            "torch_threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpu": gpu,
        },
    }


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the checkout this runs from, "-dirty" where files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    place = Path(__file__).parent
    found = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() if found.returncode == 0 else "unknown"
