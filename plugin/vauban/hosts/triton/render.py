"""A model repository out of a policy: `config.pbtxt` files around the models' code.

Which sections of the policy stand in which model is said once, in `STEPS`. The encoder's own
section stands in both models that read its files; the two are rendered alike, and `guard_encoder`
refuses windows that were cut for other models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import vauban
from vauban.errors import ConfigError
from vauban.hosts.triton.requests import OUTPUTS, UNSERVED
from vauban.hosts.triton.settings import ENGINE_SECTIONS, engine_fields, for_engine, parameters_of
from vauban.policy import Policy

MAX_BATCH: Final = 64
LLM_BATCHES: Final = 4
"""Batches of the ensemble that wait for the LLM at once, each in a process of its own."""
_TEXT, _BOOL, _COUNT = "TYPE_STRING", "TYPE_BOOL", "TYPE_UINT32"
_OPTIONS: Final = tuple(name for name in OUTPUTS.values() if name)
_TOLD: Final = (
    ("stream", _BOOL), ("sampling_parameters", _TEXT), ("exclude_input_in_output", _BOOL),
    *((name, _BOOL) for name in _OPTIONS),
)  # fmt: skip
_ASKED: Final = (
    ("text_input", _TEXT), ("messages", _TEXT), *_TOLD, *((name, _BOOL) for name in UNSERVED),
    ("principal", _TEXT),
)  # fmt: skip
_ANSWERED: Final = (
    ("text_output", _TEXT), ("finish_reason", _TEXT), ("num_input_tokens", _COUNT),
    ("num_output_tokens", _COUNT),
)  # fmt: skip

Tensors = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One Python-backend model. `optional`: a request may leave its inputs out. `batched`:
    Triton's dynamic batcher brings requests together."""

    inputs: Tensors
    outputs: Tensors
    sections: tuple[str, ...] = ()
    optional: bool = False
    decoupled: bool = False
    batched: bool = False
    instances: int = 1
    settings: tuple[str, ...] = ()


STEPS: Final[Mapping[str, Step]] = {
    "guard_input": Step(
        _ASKED,
        (("prompt", _TEXT), ("windows", _TEXT)),
        ("limits", "identity", "routes", "normalize", "sandwich", "encoder", "injection",
         "extraction", "logprobs", "output", "state", "response", "audit"),
        optional=True,
        settings=("MODEL", "MAX_MODEL_LEN"),
    ),
    "guard_encoder": Step(
        (("windows", _TEXT),),
        (("verdict", _TEXT),),
        ("normalize", "encoder", "injection", "extraction", "audit"),
        batched=True,
        settings=("ONNX_MODEL",),
    ),
    "guard_extraction": Step(
        (("asked", _TEXT),),
        (("known", _TEXT),),
        ("extraction", "state", "response", "audit"),
    ),
    "guard_llm": Step(
        (("prompt", _TEXT),),
        (("answer", _TEXT),),
        batched=True,
        instances=LLM_BATCHES,
        settings=("LLM_BACKEND",),
    ),
    "guard_output": Step(
        (("verdict", _TEXT), ("answer", _TEXT)), _ANSWERED, ("output", "answer", "audit")
    ),
    "guarded_llm_bls": Step(
        _ASKED,
        _ANSWERED,
        ("limits", "output", "answer", "audit"),
        optional=True,
        decoupled=True,
        settings=("LLM_BACKEND",),
    ),
    "llm": Step(
        (("text_input", _TEXT), *_TOLD),
        _ANSWERED,
        ENGINE_SECTIONS,
        optional=True,
        decoupled=True,
        settings=("MODEL", "MAX_MODEL_LEN"),
    ),
}  # fmt: skip
NOT_HERE: Final = ("console", "sandbox", "tools")
"""Sections that no model reads: Triton has no routes for a console, and a request to its LLM names
no tools, so it calls none."""
ENSEMBLE: Final = "guarded_llm"
SCREEN: Final = "guard_screen"
SCREENED: Final[Tensors] = (("prompt", _TEXT), ("verdict", _TEXT))
"""What `guard_screen` gives: what the LLM gets, and whether it may."""
ENSEMBLES: Final[Mapping[str, tuple[tuple[str, ...], Tensors]]] = {
    ENSEMBLE: (("guard_input", "guard_encoder", "guard_llm", "guard_output"), _ANSWERED),
    SCREEN: (("guard_input", "guard_encoder"), SCREENED),
}
"""Steps and outputs. `guarded_llm`: encoder and LLM start side by side, and the answer waits for
the verdict. `guard_screen`: the first two, for `guarded_llm_bls`, which so waits once for both."""
GRAPH: Final = "guard_encoder_onnx"
GRAPH_INPUT: Final = "ids"
GRAPH_OUTPUTS: Final = ("scores", "embeddings")


def source() -> Path:
    """The models' code: in the package, or in the checkout that it is installed from.

    :raises ConfigError: it is in neither.
    """
    package = Path(vauban.__file__).parent
    for found in (package / "triton_models", package.parents[1] / "triton_models"):
        if (found / "guard_input" / "1" / "model.py").is_file():
            return found
    raise ConfigError("the Triton models are not in this installation of vauban")


class LlmBackend(StrEnum):
    """What runs the LLM: vauban's own model around vLLM, or Triton's vLLM backend."""

    PYTHON = "python"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class Models:
    """`model`: its directory. `max_model_len`: its context in tokens, 0 = not known here."""

    model: str = ""
    max_model_len: int = 0
    backend: LlmBackend = LlmBackend.PYTHON
    onnx: bool = False
    """Whether `guard_encoder` has its graph run by Triton's ONNX Runtime backend."""

    @property
    def settings(self) -> dict[str, str]:
        return {
            "MODEL": self.model,
            "MAX_MODEL_LEN": str(self.max_model_len),
            "LLM_BACKEND": self.backend.value,
            "ONNX_MODEL": GRAPH if self.onnx else "",
        }


def render(out: Path, policy: Policy, models: Models) -> None:
    """Write the repository. A model's other files in `out` are left alone.

    :raises ConfigError: `out` can't be written.
    """
    code = source()
    try:
        for name in STEPS:
            version = out / name / "1"
            version.mkdir(parents=True, exist_ok=True)
            if (code / name / "1").resolve() != version.resolve():
                shutil.copy(code / name / "1" / "model.py", version / "model.py")
            (out / name / "config.pbtxt").write_text(config_of(name, policy, models))
        if models.onnx:
            _write_graph(out / GRAPH, policy)
        if models.backend is LlmBackend.VLLM:
            _write_vllm(out / "llm", policy, models)
        for name in ENSEMBLES:
            (out / name / "1").mkdir(parents=True, exist_ok=True)
            (out / name / "1" / ".keep").touch()
            (out / name / "config.pbtxt").write_text(ensemble_config(name))
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}") from None


def _write_graph(model: Path, policy: Policy) -> None:
    """The encoder for Triton's ONNX Runtime backend. Rows are windows, padded by the caller."""
    from vauban.detectors.onnx import export  # torch is heavy

    (model / "1").mkdir(parents=True, exist_ok=True)
    width = export(policy.encoder, model / "1" / "model.onnx")
    scores, embeddings = GRAPH_OUTPUTS
    (model / "config.pbtxt").write_text(
        f"# {GRAPH}: written by `vauban triton render --onnx`.\n"
        'backend: "onnxruntime"\nmax_batch_size: 0\n'
        f'input {{ name: "{GRAPH_INPUT}" data_type: TYPE_INT64 dims: [ -1, -1 ] }}\n'
        f'output {{ name: "{scores}" data_type: TYPE_FP32 dims: [ -1 ] }}\n'
        f'output {{ name: "{embeddings}" data_type: TYPE_FP32 dims: [ -1, {width} ] }}\n'
    )


def _write_vllm(model: Path, policy: Policy, models: Models) -> None:
    """The LLM for Triton's vLLM backend, which completes inputs and outputs by itself."""
    (model / "1" / "model.py").unlink(missing_ok=True)
    arguments: dict[str, object] = {"model": models.model}
    if models.max_model_len:
        arguments["max_model_len"] = models.max_model_len
    arguments["additional_config"] = {"vauban": engine_fields(policy)}
    (model / "1" / "model.json").write_text(json.dumps(arguments, indent=2) + "\n")
    (model / "config.pbtxt").write_text(
        '# llm: written by `vauban triton render`.\nbackend: "vllm"\n'
        "instance_group [{ count: 1 kind: KIND_MODEL }]\n"
    )


def config_of(name: str, policy: Policy, models: Models) -> str:
    """The `config.pbtxt` of one model."""
    step = STEPS[name]
    lines = [
        f"# {name}: written by `vauban triton render`.",
        'backend: "python"',
        f"max_batch_size: {MAX_BATCH if step.batched else 0}",
    ]
    if step.decoupled:
        lines.append("model_transaction_policy { decoupled: true }")
    lines += [_tensor("input", *item, optional=step.optional) for item in step.inputs]
    lines += [_tensor("output", *item, optional=False) for item in step.outputs]
    if step.batched:
        timeout_us = policy.encoder.timeout_ms * 1000
        lines += [
            "dynamic_batching {",
            "  default_queue_policy {",
            f"    timeout_action: REJECT default_timeout_microseconds: {timeout_us}",
            f"    max_queue_size: {policy.limits.max_in_flight}",
            "  }",
            "}",
        ]
    lines.append(f"instance_group [{{ kind: KIND_CPU count: {step.instances} }}]")
    values = {key: models.settings[key] for key in step.settings}
    values |= {
        path: value
        for path, value in parameters_of(for_engine(policy) if name == "llm" else policy).items()
        if path.partition(".")[0] in step.sections
    }
    lines += [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in values.items()
    ]
    return "\n".join(lines) + "\n"


def ensemble_config(ensemble: str) -> str:
    """The `config.pbtxt` of one of `ENSEMBLES`."""
    steps, outputs = ENSEMBLES[ensemble]
    lines = [f"# {ensemble}: written by `vauban triton render`.", 'platform: "ensemble"']
    lines.append("max_batch_size: 0")
    lines += [_tensor("input", *item, optional=True) for item in _ASKED]
    lines += [_tensor("output", *item, optional=False) for item in outputs]
    lines.append("ensemble_scheduling {")
    for name in steps:
        step = STEPS[name]
        maps = [("input_map", key) for key, _ in step.inputs]
        maps += [("output_map", key) for key, _ in step.outputs]
        lines.append(f'  step {{ model_name: "{name}" model_version: -1')
        lines += [f'    {kind} {{ key: "{key}" value: "{key}" }}' for kind, key in maps]
        lines.append("  }")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, datatype: str, *, optional: bool) -> str:
    dims = "[ -1 ]" if kind == "output" and (name, datatype) in _ANSWERED else "[ 1 ]"
    extra = " optional: true" if optional else ""
    return f'{kind} {{ name: "{name}" data_type: {datatype} dims: {dims}{extra} }}'


def _quoted(text: str) -> str:
    """A string of a protobuf text file; JSON's escapes are valid there."""
    return json.dumps(text, ensure_ascii=False)
