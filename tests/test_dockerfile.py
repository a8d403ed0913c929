"""The images install what the package asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_gpu_images_install_the_faiss_of_the_gpu_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = project["project"]["optional-dependencies"]["gpu"]
    (wanted,) = [need for need in extra if need.startswith("faiss-gpu")]
    found = re.findall(r"'(faiss-gpu[^']*)'", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert found == [wanted] * 2
