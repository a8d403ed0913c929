"""A guard's steps without a server: a stand-in's tokenizer, and encoders that need no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from triton_fakes import CONTEXT, SECRET, MakeInput

from vauban.access.identity import Identity
from vauban.hosts.triton.callers import BIND_VARIABLE
from vauban.hosts.triton.front import GuardInput
from vauban.hosts.triton.seal import Seal
from vauban.hosts.triton.served import ServedModel
from vauban.mark import Sealer
from vauban.policy import Policy
from vauban.protocol.owner import Owners
from vauban.standin import make_standin


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return ServedModel(make_standin(tmp_path_factory.mktemp("triton") / "standin"), CONTEXT)


@pytest.fixture
def seal() -> Seal:
    return Seal(SECRET)


@pytest.fixture
def make_input(served: ServedModel, seal: Seal, monkeypatch: pytest.MonkeyPatch) -> MakeInput:
    """make_input(identity=..., injection={...}, ...) -> `guard_input` with this policy."""
    monkeypatch.setenv(BIND_VARIABLE, "127.0.0.1")

    def make(
        who: Identity | None = None, users: Any = None, **sections: dict[str, Any]
    ) -> GuardInput:
        sections = {"audit": {"log": "off"}, **sections}
        policy = Policy.model_validate(sections)
        owners = Owners(Sealer(SECRET), policy.output)
        return GuardInput(policy, served, seal, owners, "guarded_llm", who, users)

    return make


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"
