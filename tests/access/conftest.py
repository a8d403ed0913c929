"""A clock that tests move, and a key store with one command to add to it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vauban.access.keyfile import add_key
from vauban.types import RateLimit


class FakeClock:
    """Seconds; serves as wall clock and as monotonic clock."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def add(store: Path, clock: FakeClock) -> Callable[..., str]:
    """Adds a key and returns its text."""

    def _add(
        name: str,
        *scopes: str,
        expires_in_s: float | None = None,
        limit: RateLimit | None = None,
    ) -> str:
        expires = None
        if expires_in_s is not None:
            expires = datetime.fromtimestamp(clock.now + expires_in_s, UTC)
        key, _ = add_key(
            store,
            name,
            scopes or ("*",),
            created=datetime.fromtimestamp(clock.now, UTC),
            expires=expires,
            limit=limit or RateLimit(),
        )
        return key.text

    return _add
