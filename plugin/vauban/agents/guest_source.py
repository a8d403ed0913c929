"""The first process of a container, as a command line: the guest's own modules go in it as text, so
that a container needs an image with Python and nothing of ours."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

PACKAGE: Final = "vauban.agents.guest"
_BOOT: Final = """import sys, types
for name, text in {modules!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
"""


@lru_cache(maxsize=1)
def boot_command() -> list[str]:
    """Needs Python 3.9 or later on the container's PATH."""
    guest = Path(__file__).parent / "guest"
    modules = [(PACKAGE, "")]
    for name in ("agent", "container"):
        modules.append((f"{PACKAGE}.{name}", (guest / f"{name}.py").read_text(encoding="utf-8")))
    return ["python3", "-I", "-B", "-c", _BOOT.format(modules=modules)]
