"""What one encoder pass costs on one CPU core, and what faster arithmetic would cost in accuracy.

Every arm runs the shipped weights through `Encoder`, as a server does (padding, micro-batches and
calibration included); only the network behind it differs. The baseline is the plain forward pass
of `transformers.BertModel` of the same shape, float32, without heads, padded to the longest window.
All run in a child process that is pinned to one core, with one thread, and take turns pass by pass.

Times are CPU times of that process: on a quiet core the wall time, on a busy one not the others'.
One pass is timed, and windows are scored whole: what excerpts of suspicious ones add is the same
for every arm.
With `--data` each arm also scores a fixed sample, one text a request and all of its windows.

python -m benchmarks.encoder_latency [--quick] [--data dev_ood.jsonl.gz]
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import logging
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.results import Measure, Result, percentile
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from vauban.detectors import checkpoint
from vauban.detectors.bert import Dense, EncoderModel
from vauban.detectors.checkpoint import Architecture, CheckpointConfig
from vauban.detectors.encoder import Encoder
from vauban.detectors.windows import Ids, Windows, WindowTokenizer
from vauban.policy import EncoderPolicy
from vauban.training.evaluate import auc

SEED = 7
PLAIN, OURS = "transformers fp32", "ours fp32"
SHAPES: dict[str, tuple[int, ...]] = {
    "1 x 128": (128,),
    "8 x 128": (128,) * 8,
    "32 mixed": tuple(random.Random(SEED).choices(range(16, 129), k=32)),  # noqa: S311
}
"""Tokens of each window. The first shape is the one that decides."""

PLAIN_TARGET = 1.5
WANTED_SPEEDUP, AUC_POINTS = 2.0, 0.2

Network = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """How much to do. `attacks` and `benign`: rows of the sample, drawn with `SEED`.

    `compiled`: also `torch.compile`, which takes minutes to start.
    """

    repeats: int
    turns: Mapping[str, int]
    attacks: int
    benign: int
    compiled: bool


FULL = Plan(7, {"1 x 128": 60, "8 x 128": 12, "32 mixed": 4}, 386, 1000, compiled=True)
QUICK = Plan(3, {"1 x 128": 10, "8 x 128": 2, "32 mixed": 1}, 60, 150, compiled=False)


class Int8Dense(nn.Module):
    """`Dense` with the checkpoint's own int8 rows; activations are quantised pass by pass.

    Calls the operators behind `torch.ao.quantization.quantize_dynamic`, which is deprecated; its
    successor torchao is reported slower on the CPU (pytorch/ao#4365).
    """

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        weight = dense.weight.detach()
        scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).double()
        zero = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the type is deprecated too (pytorch#184982)
            rows = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rows, dense.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        # 7-bit activations: without VNNI the 8-bit kernels saturate.
        result: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, True)
        return result


def with_int8(model: nn.Module) -> nn.Module:
    """A copy of `model` whose every `Dense` is an `Int8Dense`."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Dense):
                setattr(parent, name, Int8Dense(child))
    return model


class Session:
    """An ONNX Runtime session as a network."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        mask = np.ones(ids.shape, np.bool_) if real is None else real.numpy()
        logits, embeddings = self._session.run(None, {"ids": ids.numpy(), "real": mask})
        return torch.from_numpy(logits), torch.from_numpy(embeddings)


def onnx_networks(model: EncoderModel, scratch: Path) -> Iterator[tuple[str, Network]]:
    """ONNX Runtime in float32 and with dynamic int8, in both types of weight, per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = scratch / "model.onnx"
    axes = {"ids": {0: "b", 1: "t"}, "real": {0: "b", 1: "t"}, "logits": {0: "b"}, "unit": {0: "b"}}
    example = (torch.ones((2, 16), dtype=torch.int64), torch.ones((2, 16), dtype=torch.bool))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter: 14 s instead of 117, fewer packages
        torch.onnx.export(
            model, example, str(path), input_names=["ids", "real"], dynamo=False,
            output_names=["logits", "unit"], dynamic_axes=axes, opset_version=17,
        )  # fmt: skip
    yield "ONNX fp32", Session(path)
    # Signed rows saturate 16-bit sums where the CPU has no VNNI, hence 7 bits for them.
    for kind, reduce in ((QuantType.QInt8, True), (QuantType.QUInt8, False)):
        small = scratch / f"{kind.name}.onnx"
        quantize_dynamic(
            path, small, per_channel=True, reduce_range=reduce, weight_type=kind,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
        yield f"ONNX {kind.name}", Session(small)


def networks(
    model: EncoderModel, scratch: Path, *, compiled: bool
) -> Iterator[tuple[str, Network]]:
    yield OURS, model
    yield "torch int8", with_int8(model)
    if compiled:
        yield "torch.compile", torch.compile(model, dynamic=True, options={"freezing": True})
    yield from onnx_networks(model, scratch)


class Arm:
    """One network behind `Encoder`. `logits`: what its passes since the last `reset` gave."""

    pad_id = 0

    def __init__(self, network: Network, config: CheckpointConfig) -> None:
        self._network, self._calibration = network, config.calibration
        self.vocab_size = config.architecture.vocab_size
        self.max_tokens = config.window.max_tokens
        self.logits: list[float] = []
        policy = EncoderPolicy()
        self.encoder = Encoder(
            [self], WindowTokenizer.load(policy), flag_at=config.flag_at,
            block_at=config.block_at, batch_tokens=policy.batch_tokens, device=torch.device("cpu"),
        )  # fmt: skip

    def __call__(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, embeddings = self._network(ids, real)
        self.logits += logits.tolist()
        c = self._calibration
        return torch.sigmoid(logits / c.temperature + c.bias), embeddings

    def run(self, windows: Sequence[Ids]) -> float:
        """The worst score; a request of its own."""
        self.logits.clear()
        return self.encoder.encode([Windows((tuple(windows),))])[0].score


def plain_forward(arch: Architecture) -> Callable[[Sequence[Ids]], object]:
    torch.manual_seed(SEED)
    model = BertModel(
        BertConfig(
            vocab_size=arch.vocab_size, hidden_size=arch.hidden_size,
            num_hidden_layers=arch.layers, num_attention_heads=arch.heads,
            intermediate_size=arch.intermediate_size, max_position_embeddings=arch.positions,
            layer_norm_eps=arch.layer_norm_eps,
        ),
        add_pooling_layer=False,
    ).eval().requires_grad_(requires_grad=False)  # fmt: skip

    def run(windows: Sequence[Ids]) -> object:
        longest = max(map(len, windows))
        ids = torch.zeros((len(windows), longest), dtype=torch.int64)
        real = torch.zeros_like(ids)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = torch.from_numpy(window)
            real[row, : len(window)] = 1
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=real)

    return run


def random_windows(lengths: Sequence[int], vocabulary: int) -> list[Ids]:
    """All different, so that none is computed once for two."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(vocabulary // 8, vocabulary, n, dtype=np.int32) for n in lengths]


def sample(rows: Sequence[Mapping[str, Any]], attacks: int, benign: int) -> list[tuple[str, int]]:
    """Texts and labels: that many of each label at most, the same ones every time."""
    chosen: list[tuple[str, int]] = []
    for label, count in ((1, attacks), (0, benign)):
        of_label = [str(row["text"]) for row in rows if row["label"] == label]
        picked = random.Random(SEED).sample(of_label, min(count, len(of_label)))  # noqa: S311
        chosen += [(text, label) for text in picked]
    return chosen


@dataclass(frozen=True)
class Scored:
    """What one arm says of the sample: the worst logit and the verdict per text."""

    logits: NDArray[np.float64]
    blocked: NDArray[np.bool_]


@dataclass(frozen=True)
class Cost:
    """What an arm loses against float32. AUC in points (hundredths), verdicts in percent."""

    auc: float
    auc_points_lost: float
    largest_logit_gap: float
    verdicts_changed: float


def cost(of: Scored, exact: Scored, labels: NDArray[np.int64]) -> Cost:
    found, expected = auc(of.logits, labels), auc(exact.logits, labels)
    return Cost(
        found,
        100 * (expected - found),
        float(np.abs(of.logits - exact.logits).max()),
        100 * float((of.blocked != exact.blocked).mean()),
    )


def worth_it(speedups: Mapping[str, float], costs: Mapping[str, Cost]) -> list[str]:
    """The arms that are fast enough and whose loss of AUC is known and small enough."""
    return [
        name
        for name, speedup in speedups.items()
        if speedup >= WANTED_SPEEDUP and name in costs and costs[name].auc_points_lost < AUC_POINTS
    ]


def score_sample(arm: Arm, texts: Sequence[tuple[str, int]]) -> Scored:
    logits, blocked = [], []
    for text, _ in texts:
        windows = arm.encoder.tokenizer([text]).per_model[0]
        if not windows:
            continue
        blocked.append(arm.run(windows) >= arm.encoder.block_at)
        logits.append(max(arm.logits))
    return Scored(np.array(logits), np.array(blocked))


def neighbours_move(arm: Arm, windows: Sequence[Ids]) -> float:
    """Largest change of a window's logit by what else is in its batch, all equally long.

    Compared in sorted order, for `Encoder` does not keep the windows': a lower bound.
    """
    alone = []
    for window in windows:
        arm.run([window])
        alone += arm.logits
    arm.run(windows)
    return float(np.abs(np.sort(alone) - np.sort(arm.logits)).max())


def timed(
    runs: Mapping[str, Callable[[Sequence[Ids]], object]], windows: Sequence[Ids], turns: int
) -> tuple[dict[str, float], float]:
    """Median CPU milliseconds of a pass per arm, and wall time by CPU time over all passes."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter(), time.process_time()
    for _ in range(turns):
        for name, run in runs.items():
            start = time.process_time()
            run(windows)
            spent[name].append(1e3 * (time.process_time() - start))
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return {name: percentile(values, 0.5) for name, values in spent.items()}, wall / cpu


def measure(plan: Plan, core: int, texts: Sequence[tuple[str, int]]) -> Result:
    """In a process of its own: pins it."""
    os.sched_setaffinity(0, {core})
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    directory = checkpoint.shipped()
    config = checkpoint.read_config(directory)
    model = EncoderModel.build(config.architecture, checkpoint.read_tensors(directory, config))
    model.requires_grad_(requires_grad=False)
    result = Result(
        "encoder_latency",
        {"shapes": SHAPES, "repeats": plan.repeats, "turns": plan.turns, "threads": 1,
         "seed": SEED, "texts": len(texts), "attacks": sum(label for _, label in texts),
         "int8_engine": torch.backends.quantized.engine,
         "cpu_capability": torch.backends.cpu.get_cpu_capability(),
         "vnni": "vnni" in Path("/proc/cpuinfo").read_text()},
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        compiled = plan.compiled and shutil.which("g++") is not None
        built = networks(model, Path(scratch), compiled=compiled)
        arms = {name: Arm(network, config) for name, network in built}
        speedups = _time_all(result, plan, arms, config)
        batch = random_windows(SHAPES["8 x 128"], config.architecture.vocab_size)
        result.measures += [
            Measure(f"logit moved by neighbours ({name})", "", (neighbours_move(arm, batch),))
            for name, arm in arms.items()
        ]
        costs = _score_all(result, arms, texts) if texts else {}
    if texts:
        chosen = worth_it(speedups, costs)
        result.notes.append(
            f"At least {WANTED_SPEEDUP:g}x faster than ours on one window at under {AUC_POINTS:g}"
            f" points of AUC lost: {', '.join(chosen) or 'none'}."
        )
    else:
        result.notes.append("No --data: what the arms lose in AUC was not measured.")
    return result


def _time_all(
    result: Result, plan: Plan, arms: Mapping[str, Arm], config: CheckpointConfig
) -> dict[str, float]:
    """Adds the timings; returns how much faster than ours each arm is on the first shape."""
    runs: dict[str, Callable[[Sequence[Ids]], object]] = {PLAIN: plain_forward(config.architecture)}
    runs |= {name: arm.run for name, arm in arms.items()}
    waits, speedups = [], {}
    for shape, lengths in SHAPES.items():
        windows = random_windows(lengths, config.architecture.vocab_size)
        timed(runs, windows, 1)  # warm, and `torch.compile` compiles
        passes = []
        for _ in range(plan.repeats):
            medians, wait = timed(runs, windows, plan.turns[shape])
            passes.append(medians)
            waits.append(wait)
        base = statistics.median(p[PLAIN] for p in passes)
        for name in runs:
            times = tuple(p[name] for p in passes)
            result.measures.append(Measure(f"{shape} ({name})", "ms", times, baseline=base))
        for name in arms:
            against = PLAIN if name == OURS else OURS
            ratio = Measure(
                f"{shape} ({name} / {against})", "x", tuple(p[name] / p[against] for p in passes),
                at_most=PLAIN_TARGET if name == OURS and shape == next(iter(SHAPES)) else None,
            )  # fmt: skip
            result.measures.append(ratio)
            if shape == next(iter(SHAPES)) and name != OURS:
                speedups[name] = 1 / ratio.value
    result.notes.append(f"Wall time was {statistics.median(waits):.2f} times the CPU time.")
    return speedups


def _score_all(
    result: Result, arms: Mapping[str, Arm], texts: Sequence[tuple[str, int]]
) -> dict[str, Cost]:
    tokenizer = next(iter(arms.values())).encoder.tokenizer
    labels = np.array([label for text, label in texts if tokenizer([text]).per_model[0]])
    scored = {name: score_sample(arm, texts) for name, arm in arms.items()}
    costs = {name: cost(found, scored[OURS], labels) for name, found in scored.items()}
    exact = costs[OURS].auc
    for name, found in costs.items():
        result.measures.append(Measure(f"AUC ({name})", "", (found.auc,), exact,
                                       lower_is_better=False))  # fmt: skip
        if name != OURS:
            result.measures += [
                Measure(f"AUC lost ({name})", "points", (found.auc_points_lost,)),
                Measure(f"largest logit gap ({name})", "", (found.largest_logit_gap,)),
                Measure(f"verdicts changed ({name})", "%", (found.verdicts_changed,)),
            ]
    return costs


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, help="gzipped JSON lines with text and label")
    arguments = parser.parse_args(argv)
    plan = QUICK if arguments.quick else FULL
    texts = sample(read_rows(arguments.data), plan.attacks, plan.benign) if arguments.data else []
    core = max(os.sched_getaffinity(0))
    # A process of its own: threads and affinity would stay for whatever runs next.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        result = pool.submit(partial(measure, plan, core, texts)).result()
    result.show(Console(width=130))
    result.write(suffix="-quick" if arguments.quick else "")
    return result


if __name__ == "__main__":
    main()
