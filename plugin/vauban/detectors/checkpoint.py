"""The encoder's directory on disk: what is in it, how it is read, how it is written.

    model.safetensors   matrices int8 with one float32 scale per row (`NAME` and `NAME.scale`),
                        vectors float32
    tokenizer.json      Hugging Face `tokenizers` file, no special handling needed
    config.json         `CheckpointConfig`: shape, windows, calibration, thresholds, hashes
    MODEL_CARD.md, provenance.json

No torch here: the API server reads the configuration and the tokenizer only.

Covers: missing, truncated, altered or mismatched files; all end in `WeightsError`.
Does not cover: an attacker who can rewrite the whole directory, hashes included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from vauban.errors import WeightsError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.json"
SCALE_SUFFIX = ".scale"
MAX_FILE_BYTES = 2 * 1024**3
LEXICAL_ROW = 256
"""Weights of the lexical head that share one int8 scale."""
LEXICAL_NAME = "lexical.table"

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Part):
    """Shape of the encoder: BERT layers, an attention-pooled head, a lexical head or none (0)."""

    type: Literal["bert-injection"] = "bert-injection"
    vocab_size: int = Field(ge=8, le=1_000_000)
    hidden_size: int = Field(ge=8, le=4096)
    layers: int = Field(ge=1, le=48)
    heads: int = Field(ge=1, le=64)
    intermediate_size: int = Field(ge=8, le=16_384)
    positions: int = Field(ge=8, le=16_384)
    layer_norm_eps: float = Field(gt=0.0, lt=1e-2)
    head_queries: int = Field(ge=1, le=64)
    head_hidden_size: int = Field(ge=1, le=4096)
    lexical_buckets: int = Field(default=0, ge=0, le=2**24)

    @model_validator(mode="after")
    def _divide(self) -> Architecture:
        if self.hidden_size % self.heads:
            raise ValueError("hidden_size must be a multiple of heads")
        if self.lexical_buckets % LEXICAL_ROW:
            raise ValueError(f"lexical_buckets must be a multiple of {LEXICAL_ROW}")
        return self


class WindowConfig(_Part):
    """How long text is cut. Tokens, special tokens included in `max_tokens`.

    `excerpts_from_logit`: windows whose own logit is at least this are scored again in excerpts
    (`excerpts.py`). `long_discount`: from the logit of a text that fills n different windows
    so many times log n is taken, since it has n chances of a false alarm; 1 would be Bonferroni's.
    Both are here because the thresholds are set with them.
    """

    max_tokens: int = Field(ge=8, le=16_384)
    overlap_tokens: int = Field(ge=0)
    excerpts_from_logit: float | None = Field(default=None, ge=-1e3, le=1e3)
    long_discount: float = Field(default=0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _overlap_fits(self) -> WindowConfig:
        if 2 * self.overlap_tokens > self.max_tokens - 2:
            raise ValueError("overlap_tokens must be at most half of a window")
        return self


class Calibration(_Part):
    """score = sigmoid(logit / temperature + bias)."""

    temperature: float = Field(gt=0.0, le=1e3)
    bias: float = Field(ge=-1e3, le=1e3)


class CheckpointConfig(_Part):
    """`config.json`. `thresholds` maps a false-positive rate ("0.001") to the score that has it."""

    format: Literal[1] = 1
    architecture: Architecture
    window: WindowConfig
    calibration: Calibration
    thresholds: dict[str, Probability]
    flag_at: Probability
    block_at: Probability
    weights_sha256: Sha256
    tokenizer_sha256: Sha256

    @model_validator(mode="after")
    def _consistent(self) -> CheckpointConfig:
        if self.flag_at > self.block_at:
            raise ValueError("flag_at must not be above block_at")
        if self.window.max_tokens > self.architecture.positions:
            raise ValueError("window.max_tokens must not be above architecture.positions")
        return self


def shipped() -> Path:
    """Directory of the encoder that comes with the package."""
    return Path(str(files("vauban") / "data" / "encoder"))


def read_file(path: Path) -> bytes:
    """:raises WeightsError: missing, unreadable or absurdly large."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise WeightsError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: can't be read ({error.strerror})") from error


def read_verified(path: Path, sha256: str) -> bytes:
    """:raises WeightsError: also when the file is not the one `sha256` names."""
    data = read_file(path)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsError(f"{path}: sha256 is {found}, expected {sha256}; damaged or replaced")
    return data


def read_config(directory: Path) -> CheckpointConfig:
    path = directory / CONFIG_NAME
    try:
        return CheckpointConfig.model_validate_json(read_file(path))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()
        )
        raise WeightsError(f"{path}: {faults}") from error


def read_tokenizer(directory: Path, config: CheckpointConfig) -> str:
    """Verified text of `tokenizer.json`."""
    data = read_verified(directory / TOKENIZER_NAME, config.tokenizer_sha256)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{directory / TOKENIZER_NAME}: not UTF-8") from error


def parse_safetensors(data: bytes, name: str) -> dict[str, NDArray[np.generic]]:
    try:
        tensors: dict[str, NDArray[np.generic]] = load_safetensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{name}: not a whole safetensors file ({error})") from error
    return tensors


def read_tensors(directory: Path, config: CheckpointConfig) -> dict[str, NDArray[np.float32]]:
    """All weights, dequantised to float32. Shapes are checked by whoever builds the model."""
    path = directory / WEIGHTS_NAME
    stored = parse_safetensors(read_verified(path, config.weights_sha256), str(path))
    return dequantise(stored, str(path))


def quantise(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    """Matrices to int8, symmetric, one scale per row; vectors stay float32."""
    stored: dict[str, NDArray[np.generic]] = {}
    for name, value in tensors.items():
        value = np.ascontiguousarray(value, dtype=np.float32)
        if value.ndim != 2:
            stored[name] = value
            continue
        scale = np.maximum(np.abs(value).max(axis=1), 1e-12) / np.float32(127)
        stored[name] = np.rint(value / scale[:, None]).astype(np.int8)
        stored[name + SCALE_SUFFIX] = scale.astype(np.float32)
    return stored


def dequantise(
    stored: Mapping[str, NDArray[np.generic]], origin: str = "weights"
) -> dict[str, NDArray[np.float32]]:
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, value in stored.items():
        if name.endswith(SCALE_SUFFIX):
            if name.removesuffix(SCALE_SUFFIX) not in stored:
                raise WeightsError(f"{origin}: {name} scales nothing")
            continue
        if value.dtype == np.int8:
            scale = stored.get(name + SCALE_SUFFIX)
            if scale is None or scale.dtype != np.float32 or scale.shape != value.shape[:1]:
                raise WeightsError(f"{origin}: {name} is int8 without one float32 scale per row")
            full = value.astype(np.float32)
            full *= scale.astype(np.float32)[:, None]
        elif value.dtype == np.float32:
            full = value.astype(np.float32)
        else:
            raise WeightsError(f"{origin}: {name} is {value.dtype}, expected int8 or float32")
        if not np.isfinite(full).all():
            raise WeightsError(f"{origin}: {name} has values that are not finite")
        tensors[name] = full
    return tensors


def write_checkpoint(
    directory: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    tokenizer: str,
    settings: Mapping[str, object],
) -> CheckpointConfig:
    """Write weights, tokenizer and config. `settings`: all of `CheckpointConfig` but the hashes."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = save_safetensors(quantise(tensors))
    config = CheckpointConfig.model_validate(
        {
            **settings,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(),
        }
    )
    (directory / WEIGHTS_NAME).write_bytes(weights)
    (directory / TOKENIZER_NAME).write_bytes(tokenizer.encode())
    text = json.dumps(config.model_dump(), indent=2, sort_keys=False)
    (directory / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    return config
