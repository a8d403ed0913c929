"""A tiny encoder and tiny third-party classifiers, made on the spot."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vauban.detectors.checkpoint import Architecture, write_checkpoint
from vauban.detectors.encoder import Encoder
from vauban.policy import EncoderPolicy
from vauban.training.base import covering, new_head

ARCH = Architecture(
    vocab_size=200,
    hidden_size=32,
    layers=2,
    heads=4,
    intermediate_size=48,
    positions=64,
    layer_norm_eps=1e-12,
    head_queries=2,
    head_hidden_size=16,
)


def bert_tokenizer() -> Tokenizer:
    alnum = string.ascii_lowercase + string.digits
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *alnum, *string.punctuation]
    words += ["##" + c for c in alnum] + ["the", "ignore", "##ing", "##tion", "é", "##é"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens(words[:5])
    return tokenizer


def tiny_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    width = ARCH.hidden_size

    def matrix(*shape: int) -> np.ndarray:
        return random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    tensors = {"words.weight": matrix(ARCH.vocab_size, width)}
    tensors["positions.weight"] = matrix(ARCH.positions, width)
    norms = ["embedding_norm"]
    for i in range(ARCH.layers):
        shapes = {"qkv": (3 * width, width), "out": (width, width)}
        shapes |= {"up": (ARCH.intermediate_size, width), "down": (width, ARCH.intermediate_size)}
        for name, shape in shapes.items():
            tensors[f"layers.{i}.{name}.weight"] = matrix(*shape)
            tensors[f"layers.{i}.{name}.bias"] = matrix(shape[0])
        norms += [f"layers.{i}.attention_norm", f"layers.{i}.output_norm"]
    for name in norms:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = matrix(width)
    return tensors | new_head(ARCH, seed)


def settings() -> dict[str, object]:
    return {
        "architecture": ARCH.model_dump(),
        "window": {"max_tokens": 32, "overlap_tokens": 8, "excerpts_from_logit": -1e3},
        "calibration": {"temperature": 1.5, "bias": -0.25},
        "thresholds": {"0.001": 0.95, "0.005": 0.9, "0.01": 0.8},
        "flag_at": 0.8,
        "block_at": 0.9,
    }


@pytest.fixture
def tiny_arch() -> Architecture:
    return ARCH


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "encoder"
    write_checkpoint(directory, tiny_tensors(), covering(bert_tokenizer().to_str()), settings())
    return directory


@pytest.fixture
def tiny(tiny_dir: Path) -> Encoder:
    return Encoder.load(EncoderPolicy(weights=tiny_dir, batch_tokens=512), "cpu")


@pytest.fixture(scope="session")
def shipped() -> Encoder:
    return Encoder.load(EncoderPolicy(), "cpu")


@pytest.fixture
def save_classifier(tmp_path: Path) -> Callable[..., Path]:
    """save_classifier("bert" | "deberta", id2label) -> directory as `save_pretrained` writes it."""

    def save(family: str, id2label: dict[int, str], name: str = "classifier") -> Path:
        tokenizer = bert_tokenizer()
        shape = {
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "id2label": id2label,
            "label2id": {label: i for i, label in id2label.items()},
        }
        torch.manual_seed(3)
        if family == "bert":
            model = transformers.BertForSequenceClassification(transformers.BertConfig(**shape))
        else:
            deberta = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
            config = transformers.DebertaV2Config(**shape, **deberta, position_buckets=16)
            model = transformers.DebertaV2ForSequenceClassification(config)
        directory = tmp_path / name
        model.save_pretrained(directory, safe_serialization=True)
        tokenizer.save(str(directory / "tokenizer.json"))
        return directory

    return save


@pytest.fixture
def edit_json() -> Callable[..., None]:
    def edit(path: Path, **changes: object) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit
