"""What must be known of a third-party classifier before it runs. No torch here.

A directory as `save_pretrained` writes it: config.json, tokenizer.json, *.safetensors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vauban.detectors.checkpoint import read_file
from vauban.errors import WeightsError

# Lower case, letters and digits only.
_ATTACK = re.compile(
    "(direct|indirect|prompt)?injection|jailbreak|hijack|attack|malicious|unsafe|harmful"
)
_BENIGN = re.compile("benign|safe|legit(imate)?|normal|clean|ok|harmless|(no|not)injection")
_MAX_WINDOW_TOKENS = 512
_OVERLAP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """`attack_labels`: indices whose probabilities add up to the score."""

    directory: Path
    tokenizer_path: Path
    vocab_size: int
    pad_id: int
    max_tokens: int
    overlap_tokens: int
    attack_labels: tuple[int, ...]
    labels: int


def read_classifier_config(directory: Path) -> ClassifierConfig:
    """:raises WeightsError: the directory is not a safetensors sequence classifier we can read."""
    path = directory / "config.json"
    try:
        raw = json.loads(read_file(path))
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON") from error
    if not isinstance(raw, dict):
        raise WeightsError(f"{path}: not an object")
    tokenizer_path = directory / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise WeightsError(f"{directory}: no tokenizer.json; save the fast tokenizer beside it")
    if not any(directory.glob("*.safetensors")):
        raise WeightsError(f"{directory}: no *.safetensors; pickled weights are never loaded")
    labels = _labels(raw.get("id2label"), path)
    max_tokens = _max_tokens(raw, path)
    return ClassifierConfig(
        directory=directory,
        tokenizer_path=tokenizer_path,
        vocab_size=_whole_number(raw, "vocab_size", None, path),
        pad_id=_whole_number(raw, "pad_token_id", 0, path),
        max_tokens=max_tokens,
        overlap_tokens=min(_OVERLAP_TOKENS, max_tokens // 4),
        attack_labels=attack_labels(labels, path),
        labels=len(labels),
    )


def attack_labels(labels: tuple[str, ...], path: Path) -> tuple[int, ...]:
    """Indices of the labels that mean an attack, by name. All names must be understood."""
    names = ["".join(c for c in label.lower() if c.isalnum()) for label in labels]
    if names == ["label0", "label1"]:  # the convention of Prompt Guard 2
        return (1,)
    attacks = tuple(i for i, name in enumerate(names) if _ATTACK.fullmatch(name))
    unknown = [
        name for name in names if not _ATTACK.fullmatch(name) and not _BENIGN.fullmatch(name)
    ]
    if not attacks or unknown:
        raise WeightsError(
            f"{path}: can't tell which of the labels {list(labels)} mean an attack; name them in"
            ' id2label, for example {"0": "SAFE", "1": "INJECTION"}'
        )
    if len(attacks) == len(names):
        raise WeightsError(f"{path}: every label of {list(labels)} means an attack")
    return attacks


def _labels(id2label: object, path: Path) -> tuple[str, ...]:
    if not isinstance(id2label, dict) or not id2label:
        raise WeightsError(f"{path}: no id2label; is it a sequence classifier?")
    try:
        by_index = {int(index): str(name) for index, name in id2label.items()}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: id2label has a key that is no number") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise WeightsError(f"{path}: id2label does not count from 0")
    return tuple(by_index[i] for i in range(len(by_index)))


def _whole_number(raw: dict[str, object], name: str, default: int | None, path: Path) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WeightsError(f"{path}: {name} is missing or no whole number")
    return value


def _max_tokens(raw: dict[str, object], path: Path) -> int:
    positions = _whole_number(raw, "max_position_embeddings", _MAX_WINDOW_TOKENS, path)
    if "roberta" in str(raw.get("model_type")):  # position ids start after the padding index
        positions -= _whole_number(raw, "pad_token_id", 1, path) + 1
    if positions < 16:
        raise WeightsError(f"{path}: max_position_embeddings leaves no room for text")
    return min(_MAX_WINDOW_TOKENS, positions)
