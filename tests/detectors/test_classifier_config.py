"""What a third-party classifier's config.json means, or why it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vauban.detectors.classifier_config import attack_labels, read_classifier_config
from vauban.errors import WeightsError


def write(directory: Path, **changes: Any) -> Path:
    config = {
        "model_type": "bert",
        "vocab_size": 99,
        "pad_token_id": 0,
        "max_position_embeddings": 512,
        "id2label": {"0": "SAFE", "1": "INJECTION"},
    }
    (directory / "config.json").write_text(json.dumps(config | changes))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("SAFE", "INJECTION"), (1,)),
        (("INJECTION", "LEGIT"), (0,)),
        (("BENIGN", "INJECTION", "JAILBREAK"), (1, 2)),
        (("LABEL_0", "LABEL_1"), (1,)),
        (("benign", "malicious"), (1,)),
        (("no-injection", "prompt_injection"), (1,)),
    ],
)
def test_labels_are_found_by_name(labels: tuple[str, ...], expected: tuple[int, ...]) -> None:
    assert attack_labels(labels, Path("config.json")) == expected


@pytest.mark.parametrize(
    "labels",
    [
        ("LABEL_0",),
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ("LABEL_1", "LABEL_0"),
        ("positive", "negative"),
        ("SAFE", "BENIGN"),
        ("INJECTION", "JAILBREAK"),
        ("INJECTION", "other"),
        ("INJECTION", ""),
    ],
)
def test_ambiguous_labels_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(WeightsError, match="attack"):
        attack_labels(labels, Path("config.json"))


def test_windows_fit_the_positions(tmp_path: Path) -> None:
    assert read_classifier_config(write(tmp_path)).max_tokens == 512
    assert read_classifier_config(write(tmp_path, max_position_embeddings=8192)).max_tokens == 512
    roberta = write(tmp_path, model_type="xlm-roberta", max_position_embeddings=514, pad_token_id=1)
    assert read_classifier_config(roberta).max_tokens == 512


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": None},
        {"id2label": {"x": "SAFE"}},
        {"id2label": {"1": "SAFE", "2": "INJECTION"}},
        {"vocab_size": None},
        {"vocab_size": "many"},
        {"pad_token_id": -1},
        {"max_position_embeddings": 4},
    ],
)
def test_unusable_configs_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_classifier_config(write(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_classifier_config(tmp_path)


def test_pickled_weights_and_slow_tokenizers_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="safetensors"):
        read_classifier_config(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="tokenizer"):
        read_classifier_config(tmp_path)
