"""What every test may use: an encoder that needs no weights, and policies."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from redis_server import RedisServer
from vauban.detectors.encoder import Encoded
from vauban.detectors.windows import Windows
from vauban.guard import Guard
from vauban.policy import Policy
from vauban.policy_standing import MEMORY, StatePolicy

# Servers, tools and commands are many processes that import the same thousands of files: each would
# compile them again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A busy machine is no reason to fail.
settings.register_profile("vauban", deadline=None)
settings.load_profile("vauban")

TRIGGER = "volcano"
TRIGGER_ID = 12_779
HIGH, LOW = 0.999, 0.001


class FakeEncoder:
    """Scores a request HIGH when TRIGGER is in one of its windows, LOW otherwise.

    `batches` has the size of every batch that was encoded; `fail` is raised instead when set.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fail: Exception | None = None

    def encode(self, batch: Sequence[Windows]) -> list[Encoded]:
        self.batches.append(len(batch))
        if self.fail is not None:
            raise self.fail
        return [self._one(windows) for windows in batch]

    @staticmethod
    def _one(windows: Windows) -> Encoded:
        ids = [ids for per_model in windows.per_model for ids in per_model]
        hit = any(TRIGGER_ID in window for window in ids)
        digest = hashlib.sha256(windows.to_bytes()).digest()
        embedding = np.frombuffer(digest, np.uint8).astype(np.float32)
        return Encoded(HIGH if hit else LOW, embedding / np.linalg.norm(embedding), len(ids))


@pytest.fixture
def fake_encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., Policy]:
    """make_policy(injection={"mode": "off"}, ...) -> Policy."""

    def make(**sections: dict[str, object]) -> Policy:
        return Policy.model_validate(sections)

    return make


@pytest.fixture(scope="session")
def make_guard(make_policy: Callable[..., Policy]) -> Callable[..., Guard]:
    """make_guard(injection={...}, ...) -> Guard with the shipped tokenizer, block 0.9, flag 0.5."""

    def make(**sections: dict[str, object]) -> Guard:
        thresholds = {"block_at": 0.9, "flag_at": 0.5}
        sections["injection"] = thresholds | sections.get("injection", {})
        return Guard(make_policy(**sections))

    return make


@pytest.fixture(scope="session")
def guard(make_guard: Callable[..., Guard]) -> Guard:
    return make_guard()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis server for all tests that leave it alive; each takes a prefix of its own."""
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A Redis server that keeps its data on disk, for a test that kills it."""
    server = RedisServer(save=True)
    yield server
    server.remove()


def _state_policy(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., StatePolicy]:
    store, prefix = MEMORY, secrets.token_hex(8)
    if request.param == "sqlite":
        store = f"sqlite://{tmp_path}/state.db"
    elif request.param == "valkey":
        store = request.getfixturevalue("redis_server").url

    def make(**fields: Any) -> StatePolicy:
        return StatePolicy(store=store, prefix=prefix, **fields)

    return make


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def state_policy(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., StatePolicy]:
    """state_policy(refresh_ms=..., ...) -> the policy of a store, empty before the test."""
    return _state_policy(request, tmp_path)


@pytest.fixture(params=["sqlite", "valkey"])
def shared_policy(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., StatePolicy]:
    """The same for stores that several processes share."""
    return _state_policy(request, tmp_path)
