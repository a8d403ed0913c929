"""One sandbox for all tests: a guest that is booted once, and cloned for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vauban.agents.frames import Job, Result
from vauban.agents.image import Image, default_directory, load_image
from vauban.agents.image_build import build_image
from vauban.agents.sandbox import Sandbox
from vauban.agents.template import cache_directory
from vauban.errors import ImageError
from vauban.policy_sandbox import SandboxPolicy


@pytest.fixture(scope="session")
def image_directory() -> Path:
    """The image that `make test` has built; missing tools fail here, they don't skip."""
    directory = default_directory()
    try:
        load_image(directory).close()
    except ImageError:
        build_image(directory)
    return directory


@pytest.fixture(scope="session")
def image(image_directory: Path) -> Iterator[Image]:
    image = load_image(image_directory)
    yield image
    image.close()


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where snapshots are kept: with those of the command, so that only the first run boots one."""
    return cache_directory()


@pytest.fixture(scope="session")
def policy() -> SandboxPolicy:
    """A busy machine emulates slowly, which is not what is tested."""
    return SandboxPolicy(wall_s=60, cpu_s=60, pool=0)


@pytest.fixture(scope="session")
def sandbox(image_directory: Path, cache: Path, policy: SandboxPolicy) -> Iterator[Sandbox]:
    """With the canary: it has passed."""
    with Sandbox(policy, cache) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def limited(sandbox: Sandbox) -> Callable[..., Result]:
    """limited(code, wall_s=..., ...) -> the result of a program in a clone with these limits."""

    def run(code: str, job: Job | None = None, **limits: int) -> Result:
        vm = sandbox.clone(sandbox.policy.model_copy(update=limits))
        try:
            return vm.run(job or Job(code.encode()))
        finally:
            vm.kill()

    return run
