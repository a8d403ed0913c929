"""Our forward pass equals the reference implementation's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from vauban.detectors.bert import EncoderModel
from vauban.detectors.checkpoint import Architecture
from vauban.errors import WeightsError
from vauban.training.base import convert, new_head


def reference(arch: Architecture) -> transformers.BertModel:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        intermediate_size=arch.intermediate_size,
        max_position_embeddings=arch.positions,
        layer_norm_eps=arch.layer_norm_eps,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def test_equal_to_transformers(tiny_arch: Architecture) -> None:
    theirs = reference(tiny_arch)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    tensors = {**convert(state, tiny_arch.layers), **new_head(tiny_arch, 0)}
    ours = EncoderModel.build(tiny_arch, tensors)
    ids = torch.randint(5, tiny_arch.vocab_size, (3, 20))
    real = torch.arange(20) < torch.tensor([[20], [7], [1]])
    with torch.inference_mode():
        hidden = theirs(input_ids=ids, attention_mask=real.long()).last_hidden_state
        _, found = ours(ids, real)
    pooled = (hidden * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(pooled, dim=-1)
    assert (found - expected).abs().max() < 1e-4


def test_padding_changes_nothing(tiny_arch: Architecture) -> None:
    tensors = {**convert(_state(tiny_arch), tiny_arch.layers), **new_head(tiny_arch, 0)}
    model = EncoderModel.build(tiny_arch, tensors)
    ids = torch.randint(5, tiny_arch.vocab_size, (1, 9))
    padded = torch.cat([ids, torch.zeros(1, 6, dtype=torch.int64)], dim=1)
    real = torch.arange(15)[None] < 9
    with torch.inference_mode():
        logit, embedding = model(ids, None)
        logit2, embedding2 = model(padded, real)
    assert (logit - logit2).abs().max() < 1e-5
    assert (embedding - embedding2).abs().max() < 1e-5


def test_build_ignores_torch_defaults(tiny_arch: Architecture) -> None:
    tensors = {**convert(_state(tiny_arch), tiny_arch.layers), **new_head(tiny_arch, 0)}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = EncoderModel.build(tiny_arch, tensors)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_missing_tensors_are_named(tiny_arch: Architecture) -> None:
    tensors = {**convert(_state(tiny_arch), tiny_arch.layers)}
    with pytest.raises(WeightsError, match=r"head\."):
        EncoderModel.build(tiny_arch, tensors)


def _state(arch: Architecture) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in reference(arch).state_dict().items()}
