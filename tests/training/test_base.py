"""What training starts from is exactly the named base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vauban.detectors import checkpoint
from vauban.errors import WeightsError
from vauban.training.base import covering, load_start


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="sha256"):
        load_start(0, tmp_path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_start(0, tmp_path)


def test_covering_is_what_ships_and_stable() -> None:
    directory = checkpoint.shipped()
    shipped = checkpoint.read_tokenizer(directory, checkpoint.read_config(directory))
    assert covering(shipped) == shipped
    spec = json.loads(shipped)
    assert spec["truncation"] is None
    assert spec["padding"] is None
