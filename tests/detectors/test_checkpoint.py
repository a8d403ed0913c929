"""The directory on disk: damaged, altered or mismatched files never load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from vauban.detectors import checkpoint
from vauban.detectors.encoder import Encoder
from vauban.errors import WeightsError
from vauban.policy import EncoderPolicy


def load(directory: Path) -> Encoder:
    return Encoder.load(EncoderPolicy(weights=directory), "cpu")


def replace_weights(directory: Path, data: bytes) -> None:
    """Put other weights in place, with a hash that fits."""
    (directory / "model.safetensors").write_bytes(data)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["weights_sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(config))


def stored(directory: Path) -> dict[str, np.ndarray]:
    return checkpoint.parse_safetensors((directory / "model.safetensors").read_bytes(), "x")


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 40))
def test_int8_rows_are_close(seed: int, rows: int, columns: int) -> None:
    value = np.random.default_rng(seed).normal(0, 3, (rows, columns)).astype(np.float32)
    back = checkpoint.dequantise(checkpoint.quantise({"w": value}))["w"]
    step = np.abs(value).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - value) <= step * 0.51).all()


def test_zero_rows_and_vectors_are_exact() -> None:
    value = {"w": np.zeros((2, 3), np.float32), "b": np.float32([0.1, -2])}
    back = checkpoint.dequantise(checkpoint.quantise(value))
    assert (back["w"] == 0).all()
    assert (back["b"] == value["b"]).all()


def test_quantising_twice_changes_nothing() -> None:
    value = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    once = checkpoint.dequantise(checkpoint.quantise({"w": value}))
    twice = checkpoint.dequantise(checkpoint.quantise(once))
    np.testing.assert_allclose(once["w"], twice["w"], rtol=1e-6)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tiny_dir: Path, name: str) -> None:
    (tiny_dir / name).unlink()
    with pytest.raises(WeightsError, match=name):
        load(tiny_dir)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:1000] + b"!" + d[1001:]])
def test_an_altered_file_is_refused(
    tiny_dir: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tiny_dir / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match="sha256"):
        load(tiny_dir)


@settings(max_examples=40)
@given(data=st.data())
def test_damage_under_a_fitting_hash_is_a_weights_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = save({"a": np.ones((2, 2), np.float32)})
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 9)) :]
    try:
        tensors = checkpoint.parse_safetensors(bad, "weights")
        checkpoint.dequantise(tensors)
    except WeightsError:
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"words.weight": t["words.weight"][:-1]}, "scale"),
        (lambda t: {k: v for k, v in t.items() if "layers.1.qkv" not in k}, "layers.1.qkv"),
        (lambda t: t | {"extra.weight": np.ones(3, np.float32)}, "extra.weight"),
        (lambda t: t | {"head.logit.bias": np.float32([np.nan])}, "finite"),
        (lambda t: t | {"head.logit.bias": np.float64([0.0])}, "float64"),
        (lambda t: {k: v for k, v in t.items() if k != "words.weight.scale"}, "scale"),
        (lambda t: {k: v for k, v in t.items() if k != "words.weight"}, "scales nothing"),
        (lambda t: t | {"head.logit.bias": np.zeros(2, np.float32)}, "head.logit.bias"),
    ],
)
def test_wrong_tensors_are_refused(
    tiny_dir: Path,
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    message: str,
) -> None:
    replace_weights(tiny_dir, save(change(stored(tiny_dir))))
    with pytest.raises(WeightsError, match=message):
        load(tiny_dir)


def test_a_pickle_is_not_opened(tiny_dir: Path) -> None:
    replace_weights(tiny_dir, b"\x80\x04\x95cos\nsystem\n.")
    with pytest.raises(WeightsError, match="safetensors"):
        load(tiny_dir)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"surprise": 1},
        {"flag_at": 0.95, "block_at": 0.9},
        {"block_at": 1.5},
        {"calibration": {"temperature": 0.0, "bias": 0.0}},
        {"calibration": {"temperature": float("nan"), "bias": 0.0}},
        {"window": {"max_tokens": 65, "overlap_tokens": 8}},
        {"window": {"max_tokens": 32, "overlap_tokens": 16}},
        {"weights_sha256": "abc"},
    ],
)
def test_a_wrong_config_is_refused(
    tiny_dir: Path, edit_json: Callable[..., None], changes: dict[str, object]
) -> None:
    edit_json(tiny_dir / "config.json", **changes)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load(tiny_dir)


def test_a_shape_that_is_not_the_weights_is_refused(
    tiny_dir: Path, edit_json: Callable[..., None]
) -> None:
    config = checkpoint.read_config(tiny_dir)
    other = config.architecture.model_dump() | {"layers": 3}
    edit_json(tiny_dir / "config.json", architecture=other)
    with pytest.raises(WeightsError, match=r"layers\.2"):
        load(tiny_dir)


def test_shipped_files_are_small_and_whole() -> None:
    directory = checkpoint.shipped()
    config = checkpoint.read_config(directory)
    assert config.flag_at <= config.block_at
    assert config.thresholds.keys() >= {"0.001", "0.005", "0.01"}
    assert {config.flag_at, config.block_at} <= set(config.thresholds.values())
    names = {path.name for path in directory.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "MODEL_CARD.md",
        "provenance.json",
    }
    assert all(path.stat().st_size < 25_000_000 for path in directory.iterdir())
    provenance = json.loads((directory / "provenance.json").read_text())
    assert provenance["model.safetensors_sha256"] == config.weights_sha256
