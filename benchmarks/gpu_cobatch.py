"""What the encoder adds to a step of an 8B model that shares its GPU.

A Llama of 8B shape with random weights does a prefill step (32 prompts of 512 tokens) and a decode
step (32 sequences), alone and with the encoder and a flat nearest-neighbour search beside it, as
the engine half runs them: submitted before the forward pass through the product's own `ScreenQueue`
and `on_own_stream`, waited for after it. Steps with and without take turns.

Without a GPU a small shape runs on the CPU. That shows that the code works and gives no figure
for a GPU: there all work shares the same cores.

python -m benchmarks.gpu_cobatch [--quick] [--small]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.results import Measure, Result
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from vauban.detectors.encoder import Encoded, Encoder
from vauban.detectors.windows import Windows
from vauban.hosts.vllm.stream import on_own_stream
from vauban.policy import EncoderPolicy
from vauban.screening import ScreenQueue
from vauban.standin import prose
from vauban.types import Reason

TARGET_PERCENT = 1.0
NEIGHBOURS = 8
NO_GPU = "CPU, small shape: no GPU figure exists yet, and none can be read from this."


@dataclass(frozen=True)
class Shape:
    """`words` per prompt give about `tokens` of the main model and of the encoder alike."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    batch: int
    tokens: int
    words: int
    indexed: int


LLAMA_8B = Shape(32, 4096, 32, 8, 14_336, 128_256, 32, 512, 430, 1_000_000)
SMALL = Shape(2, 256, 4, 2, 512, 1024, 4, 64, 50, 10_000)


class Layer(nn.Module):
    """One Llama layer: RMS norm, grouped-query attention with rotary positions, SwiGLU."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = s.heads, s.kv_heads, s.hidden // s.heads
        self.qkv = nn.Linear(s.hidden, (s.heads + 2 * s.kv_heads) * self.width, bias=False)
        self.out = nn.Linear(s.hidden, s.hidden, bias=False)
        self.gate_up = nn.Linear(s.hidden, 2 * s.mlp, bias=False)
        self.down = nn.Linear(s.mlp, s.hidden, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(s.hidden), nn.RMSNorm(s.hidden)

    def forward(self, x: Tensor, turn: Tensor, past: tuple[Tensor, Tensor] | None) -> Tensor:
        """
        :param x: [batch, tokens, hidden]. :param turn: [tokens, width / 2] complex rotation.
        :param past: keys and values [batch, kv_heads, past tokens, width]; None = prefill.
        """
        batch, tokens, _ = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, tokens, -1, self.width).transpose(1, 2)
        q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = _rotate(q, turn), _rotate(k, turn)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=past is None, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        result: Tensor = x + self.down(F.silu(gate) * up)
        return result


class Llama(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(s.vocabulary, s.hidden)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden)
        self.head = nn.Linear(s.hidden, s.vocabulary, bias=False)
        self.width = s.hidden // s.heads

    def forward(self, ids: Tensor, past: Sequence[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Logits of the last position: [batch, tokens] -> [batch, vocabulary]."""
        start = past[0][0].shape[2] if past else 0
        at = torch.arange(start, start + ids.shape[1], device=ids.device)
        pace = 5e5 ** -(torch.arange(0, self.width, 2, device=ids.device) / self.width)
        turn = torch.polar(torch.ones(1, device=ids.device), at[:, None] * pace)
        x = self.words(ids)
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, past[index] if past else None)
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def make_search(vectors: int, device: torch.device) -> tuple[str, Callable[[Any], None]]:
    """A flat inner-product search over random unit vectors: FAISS on the GPU where it is
    installed, else torch on a GPU and FAISS on a CPU."""
    import faiss

    width = 384
    generator = torch.Generator().manual_seed(0)
    known = F.normalize(torch.randn(vectors, width, generator=generator), dim=-1)
    on_gpu = device.type == "cuda"
    if on_gpu and not hasattr(faiss, "StandardGpuResources"):
        held = known.to(device, torch.float16).T.contiguous()

        def multiply(queries: Any) -> None:
            scores = torch.from_numpy(queries).to(device, torch.float16) @ held
            scores.topk(NEIGHBOURS).values.cpu()

        return "torch", multiply
    index: Any = faiss.IndexFlatIP(width)
    if on_gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(known.numpy())

    def search(queries: Any) -> None:
        index.search(queries, NEIGHBOURS)

    return f"faiss on {device.type}", search


def screen_queue(
    encoder: Encoder, search: Callable[[Any], None], device: torch.device
) -> ScreenQueue:
    """The product's queue; the search runs on the embeddings of each batch."""

    def encode_and_search(batch: Sequence[Windows]) -> list[Encoded]:
        encoded = encoder.encode(batch)
        search(np.stack([item.embedding for item in encoded if item.embedding is not None]))
        return encoded

    return ScreenQueue(on_own_stream(encode_and_search, device), EncoderPolicy().queue_tokens)


def timed(
    step: Callable[[], Tensor], queue: ScreenQueue, windows: Sequence[Windows], device: torch.device
) -> float:
    """Seconds for one step, its verdicts included; no windows = the step alone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    futures = queue.submit(windows)
    step()
    for future in futures:
        assert not isinstance(future.result().outcome, Reason)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def run(
    shape: Shape, device: torch.device, *, repeats: int, steps: int
) -> tuple[str, list[Measure]]:
    encoder = Encoder.load(EncoderPolicy(), device)
    found, search = make_search(shape.indexed, device)
    queue = screen_queue(encoder, search, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device, torch.inference_mode():
        torch.set_default_dtype(dtype)
        model = Llama(shape).eval()
        torch.set_default_dtype(torch.float32)
        prompts = torch.randint(0, shape.vocabulary, (shape.batch, shape.tokens))
        kv_shape = (shape.batch, shape.kv_heads, shape.tokens, shape.hidden // shape.heads)
        past = [
            (torch.randn(kv_shape, dtype=dtype), torch.randn(kv_shape, dtype=dtype))
            for _ in range(shape.layers)
        ]
        kinds: dict[str, tuple[Callable[[], Tensor], int]] = {
            f"prefill step, {shape.batch} new requests": (
                lambda: model(prompts, None), shape.batch),
            "decode step, 1 new request": (lambda: model(prompts[:, :1], past), 1),
        }  # fmt: skip
        measures = [
            measure
            for name, (step, new) in kinds.items()
            for measure in _measures(name, step, new, queue, encoder, shape, device, repeats, steps)
        ]
    queue.close()
    return found, measures


def _measures(
    name: str, step: Callable[[], Tensor], new: int, queue: ScreenQueue, encoder: Encoder,
    shape: Shape, device: torch.device, repeats: int, steps: int,
) -> Iterator[Measure]:  # fmt: skip
    seed = 0
    alone_ms: list[float] = []
    added_percent: list[float] = []
    for repeat in range(repeats + 1):
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(steps):
            windows = []
            for _ in range(new):
                seed += 1
                windows.append(encoder.tokenizer([prose(shape.words, seed)]))
            seconds[0].append(timed(step, queue, [], device))
            seconds[1].append(timed(step, queue, windows, device))
        if repeat:  # the first warms up
            alone, beside = map(statistics.median, seconds)
            alone_ms.append(1e3 * alone)
            added_percent.append(100 * (beside / alone - 1))
    yield Measure(f"{name}: alone", "ms", tuple(alone_ms))
    target = TARGET_PERCENT if device.type == "cuda" and shape is LLAMA_8B and new > 1 else None
    yield Measure(f"{name}: added by encoder and search", "%", tuple(added_percent), at_most=target)


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--small", action="store_true", help="the small shape, also on a GPU")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SMALL if arguments.small or device.type == "cpu" else LLAMA_8B
    repeats, steps = (3, 5) if arguments.quick else (7, 20)
    search, measures = run(shape, device, repeats=repeats, steps=steps)
    result = Result(
        "gpu_cobatch",
        {"device": device.type, "shape": asdict(shape), "search": search, "repeats": repeats,
         "steps": steps},
        measures=measures, notes=[NO_GPU] if device.type == "cpu" else [],
    )  # fmt: skip
    result.show(Console(width=130))
    result.write(suffix="-quick" if arguments.quick else "")
    return result


if __name__ == "__main__":
    main()
