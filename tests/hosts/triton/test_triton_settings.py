"""The policy in config.pbtxt: what is written reads back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import PolicyError
from vauban.hosts.triton.settings import parameters_of, policy_of
from vauban.policy import Policy
from vauban.policy_sources import LoadedPolicy, explain, policy_from_fields

words = st.text(min_size=1, max_size=40)


def config(parameters: dict[str, str]) -> dict[str, object]:
    return {"parameters": {k: {"string_value": v} for k, v in parameters.items()}}


@given(
    refusal=words,
    instruction=st.none() | words,
    issuer=st.none() | words,
    block=st.none() | st.floats(0, 1),
    mode=st.sampled_from(["enforce", "monitor", "off"]),
    origins=st.lists(st.sampled_from(["user", "tool", "document"]), unique=True),
    docs=st.booleans(),
    log=st.sampled_from(["stdout", "off", "/tmp/a b.log"]),  # noqa: S108
)
def test_every_policy_reads_back_as_it_was(
    refusal: str, instruction: str | None, issuer: str | None, block: float | None, mode: str,
    origins: list[str], docs: bool, log: str,
) -> None:  # fmt: skip
    policy = Policy.model_validate(
        {
            "answer": {"refusal": refusal},
            "sandwich": {"instruction": instruction, "origins": origins},
            "identity": {"jwt_issuer": issuer, "keys_file": Path("/keys/none.json")},
            "injection": {"block_at": block, "mode": mode},
            "normalize": {"mode": mode},
            "routes": {"docs": docs},
            "audit": {"log": log},
        }
    )
    assert policy_of(config(parameters_of(policy))) == policy


def test_every_field_is_a_parameter() -> None:
    fields = {row.path for row in explain(LoadedPolicy(Policy(), {}))}
    assert set(parameters_of(Policy())) == fields


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("injection.block_at", "1.5", "injection.block_at (from config.pbtxt)"),
        ("injection.block_att", "0.5", "injection.block_att (from config.pbtxt)"),
        ("injction.block_at", "0.5", "injction"),
        ("block_at", "0.5", "block_at (from config.pbtxt)"),
        ("limits.max_segments", "many", "limits.max_segments (from config.pbtxt)"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_path(name: str, value: str, told: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_of(config({name: value}))
    assert told in str(caught.value)


def test_answers_cannot_be_held_here() -> None:
    with pytest.raises(PolicyError, match=r"output\.secrets: hold is not for Triton"):
        policy_of(config({"output.secrets": "hold"}))
    with pytest.raises(PolicyError, match="write stop"):
        parameters_of(Policy.model_validate({"output": {"canary": "hold"}}))


def test_tritons_own_parameters_are_none_of_the_policys() -> None:
    assert policy_of(config({"MODEL": "/m", "EXECUTION_ENV_PATH": "/e"})) == Policy()


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAUBAN_INJECTION__BLOCK_AT", "0.9")
    assert policy_of(config({})).injection.block_at is None
    assert policy_from_fields({}, "x") == Policy()
