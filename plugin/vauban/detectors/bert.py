"""The encoder's network: BERT layers (arXiv 1810.04805) with two heads for the injection logit.

The deep head pools the last layer by attention; the lexical head is a linear model over single
tokens and pairs of neighbours, the wide part of wide & deep (arXiv 1606.07792). Their errors
differ, so their sum finds more than either.

Written out instead of taken from `transformers`: half the overhead at batch 1 and nothing to
import. A test holds it equal to `transformers.BertModel`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from vauban.detectors.checkpoint import LEXICAL_ROW, Architecture
from vauban.errors import WeightsError


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"))


class Dense(nn.Module):
    """`nn.Linear` without its initialisation, whose imports cost seconds and 150 MB."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = _empty(outputs, inputs), _empty(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = _empty(width), _empty(width), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Table(nn.Module):
    """One row per token or position."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = _empty(rows, width)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Layer(nn.Module):
    """One transformer layer, post-norm."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        width, self.heads = arch.hidden_size, arch.heads
        self.qkv = Dense(width, 3 * width)
        self.out = Dense(width, width)
        self.attention_norm = Norm(width, arch.layer_norm_eps)
        self.up = Dense(width, arch.intermediate_size)
        self.down = Dense(arch.intermediate_size, width)
        self.output_norm = Norm(width, arch.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[windows, tokens, width]; `mask` broadcasts to [windows, heads, tokens, tokens]."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        x = self.attention_norm(x + self.out(mixed))
        result: Tensor = self.output_norm(x + self.down(F.gelu(self.up(x))))
        return result


class InjectionHead(nn.Module):
    """Learned queries pool the tokens, so a short attack in a long window is not averaged away."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.queries = Dense(arch.hidden_size, arch.head_queries)
        self.hidden = Dense(arch.hidden_size * arch.head_queries, arch.head_hidden_size)
        self.logit = Dense(arch.head_hidden_size, 1)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        weights = self.queries(x)
        if real is not None:
            weights = weights.masked_fill(~real[:, :, None], float("-inf"))
        pooled = weights.softmax(dim=1).transpose(1, 2) @ x
        logit: Tensor = self.logit(F.gelu(self.hidden(pooled.flatten(1))))
        return logit.squeeze(-1)


class LexicalHead(nn.Module):
    """Sum of one weight per token and per pair of neighbours, over the root of their number.

    Weights are found by hash; `table` is cut into rows only so that each has its own int8 scale.
    """

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.table = _empty(buckets // LEXICAL_ROW, LEXICAL_ROW)

    def forward(self, ids: Tensor, real: Tensor | None) -> Tensor:
        buckets = self.table.numel()
        single, pair = lexical_buckets(ids, buckets)
        weights = self.table.view(-1)
        single, pair = weights[single], weights[pair]
        if real is None:
            count = single.new_full((len(ids),), single.shape[1] + pair.shape[1])
        else:
            single, pair = single * real, pair * real[:, 1:]
            count = (2 * real.sum(dim=1) - 1).to(single.dtype)
        total: Tensor = single.sum(dim=1) + pair.sum(dim=1)
        return total / count.sqrt()


def lexical_buckets(ids: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """Buckets of the tokens [windows, tokens] and of pairs of neighbours [windows, tokens - 1]."""
    single = (ids * 40_503 + 11) % buckets
    pair = (ids[:, :-1] * 1_000_003 + ids[:, 1:] * 7_919) % buckets
    return single, pair


class EncoderModel(nn.Module):
    """Token windows to an injection logit and a unit embedding each."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.words = Table(arch.vocab_size, arch.hidden_size)
        self.positions = Table(arch.positions, arch.hidden_size)
        self.embedding_norm = Norm(arch.hidden_size, arch.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.layers))
        self.head = InjectionHead(arch)
        self.lexical = LexicalHead(arch.lexical_buckets) if arch.lexical_buckets else None

    @classmethod
    def build(cls, arch: Architecture, tensors: Mapping[str, NDArray[np.float32]]) -> EncoderModel:
        """On the CPU, float32, whatever torch's defaults are in this process.

        :raises WeightsError: names or shapes differ from what `arch` needs.
        """
        model = cls(arch)
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = {name: value.shape for name, value in tensors.items()}
        if expected != found:
            wrong = sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )
            name = wrong[0]
            raise WeightsError(
                f"encoder weights: {name} has shape {found.get(name)},"
                f" expected {expected.get(name)} ({len(wrong)} tensors differ)"
            )
        state = {name: torch.from_numpy(value) for name, value in tensors.items()}
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval()

    def embed_tokens(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.positions.weight[: ids.shape[1]]
        normed: Tensor = self.embedding_norm(x)
        return normed

    def hidden(self, ids: Tensor, real: Tensor | None) -> Tensor:
        """Last hidden states, [windows, tokens, hidden]."""
        x = self.embed_tokens(ids)
        mask = None if real is None else real[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def forward(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """
        :param ids: [windows, tokens] int64, padded at the end.
        :param real: [windows, tokens] bool, False where padded; None when nothing is padded.
        :return: logits [windows] and unit embeddings [windows, hidden], float32.
        """
        x = self.hidden(ids, real)
        logits = self.head(x, real).float()
        if self.lexical is not None:
            logits = logits + self.lexical(ids, real).float()
        return logits, mean_pool(x, real)


def mean_pool(x: Tensor, real: Tensor | None) -> Tensor:
    """Unit mean over real tokens, float32: [windows, tokens, hidden] -> [windows, hidden]."""
    x = x.float()
    pooled = x.mean(dim=1) if real is None else (x * real[:, :, None]).sum(dim=1)
    return F.normalize(pooled, dim=-1)
