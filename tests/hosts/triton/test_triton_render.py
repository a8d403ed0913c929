"""The repository that is written: what is checked in, every policy field, no way past the guard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from vauban.errors import ConfigError
from vauban.hosts.triton.render import ENSEMBLE, NOT_HERE, STEPS, LlmBackend, Models, render, source
from vauban.hosts.triton.settings import parameters_of, policy_of
from vauban.policy import Policy


def configs(root: Path) -> dict[str, ModelConfig]:
    return {
        path.parent.name: text_format.Parse(path.read_text(), ModelConfig())
        for path in sorted(root.glob("*/config.pbtxt"))
    }


def test_what_is_checked_in_is_what_is_rendered(tmp_path: Path) -> None:
    render(tmp_path, Policy(), Models())
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            same = source() / path.relative_to(tmp_path)
            assert same.read_bytes() == path.read_bytes(), path.name


def test_every_policy_field_stands_in_some_model(tmp_path: Path) -> None:
    render(tmp_path, Policy(), Models())
    found = {name for config in configs(tmp_path).values() for name in config.parameters}
    read = {name for name in parameters_of(Policy()) if name.partition(".")[0] not in NOT_HERE}
    assert {name for name in found if not name.isupper()} == read


def test_what_is_rendered_reads_back(tmp_path: Path) -> None:
    policy = Policy.model_validate(
        {
            "answer": {"refusal": 'No "way"\n\ttoday: ünïcode 🚧 \\'},
            "injection": {"block_at": 0.5, "flag_at": 0.25},
        }
    )
    render(tmp_path, policy, Models())
    for name, config in configs(tmp_path).items():
        values = {k: {"string_value": v.string_value} for k, v in config.parameters.items()}
        read = policy_of({"parameters": values})
        for section in STEPS[name].sections if name in STEPS else ():
            assert getattr(read, section) == getattr(policy, section)


def test_an_answer_of_the_ensemble_comes_only_from_where_the_verdict_is_needed(
    tmp_path: Path,
) -> None:
    render(tmp_path, Policy(), Models())
    found = configs(tmp_path)
    steps = {step.model_name: step for step in found[ENSEMBLE].ensemble_scheduling.step}
    outputs = {output.name for output in found[ENSEMBLE].output}
    makers = {name for name, step in steps.items() if outputs & set(step.output_map.values())}
    assert makers == {"guard_output"}
    assert set(steps["guard_output"].input_map.values()) == {"verdict", "answer"}
    assert not any(found["guard_output"].input[i].optional for i in range(2))


def test_no_step_mixes_decoupled_inputs_with_others(tmp_path: Path) -> None:
    """Triton refuses to load such an ensemble."""
    render(tmp_path, Policy(), Models())
    found = configs(tmp_path)
    for step in found[ENSEMBLE].ensemble_scheduling.step:
        assert not found[step.model_name].model_transaction_policy.decoupled


def test_a_repository_for_tritons_vllm_backend(tmp_path: Path) -> None:
    render(tmp_path, Policy(), Models("org/model", 4096, LlmBackend.VLLM))
    found = configs(tmp_path)
    assert found["llm"].backend == "vllm"
    assert not (tmp_path / "llm" / "1" / "model.py").exists()
    assert '"org/model"' in (tmp_path / "llm" / "1" / "model.json").read_text()
    assert found["guard_llm"].parameters["LLM_BACKEND"].string_value == "vllm"


@pytest.mark.parametrize(
    ("sections", "written"),
    [
        ({}, "screen"),
        ({"identity": {"keys_file": "/k.json"}}, "veto"),
        ({"identity": {"trusted_network": True}}, "veto"),
        ({"identity": {"keys_file": "/k.json"}, "injection": {"unmarked": "screen"}}, "screen"),
    ],
)
def test_where_a_key_is_needed_the_llm_is_shut_to_who_calls_it_alone(
    tmp_path: Path, sections: Any, written: str
) -> None:
    policy = Policy.model_validate(sections)
    render(tmp_path, policy, Models())
    assert configs(tmp_path)["llm"].parameters["injection.unmarked"].string_value == written
    render(tmp_path, policy, Models("m", 0, LlmBackend.VLLM))
    arguments = json.loads((tmp_path / "llm" / "1" / "model.json").read_text())
    assert arguments["additional_config"]["vauban"]["injection"]["unmarked"] == written
    assert arguments["additional_config"]["vauban"]["extraction"] == {"mode": "off"}


def test_rendering_again_keeps_the_operators_files(tmp_path: Path) -> None:
    render(tmp_path, Policy(), Models())
    mine = tmp_path / "other" / "config.pbtxt"
    mine.parent.mkdir()
    mine.write_text('backend: "python"')
    render(tmp_path, Policy(), Models())
    assert mine.read_text() == 'backend: "python"'


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        render(tmp_path / "file", Policy(), Models())
