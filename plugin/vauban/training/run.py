"""The whole training run: data -> fit -> int8 checkpoint -> scores by the real encoder -> card."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vauban.detectors.checkpoint import WEIGHTS_NAME, CheckpointConfig, write_checkpoint
from vauban.detectors.encoder import Encoder
from vauban.detectors.windows import WindowTokenizer
from vauban.policy import EncoderPolicy
from vauban.training import evaluate
from vauban.training.base import Start
from vauban.training.card import model_card
from vauban.training.data import Row, file_sha256, read_rows, tokenise
from vauban.training.evaluate import Floats, Labels
from vauban.training.fit import FitConfig, Trainer
from vauban.training.plan import EpochPlan

TRAIN, DEV, DEV_OOD = "train.jsonl.gz", "dev.jsonl.gz", "dev_ood.jsonl.gz"
STATE_NAME = "training-state.safetensors"
WINDOW = {"max_tokens": 192, "overlap_tokens": 56}
# One false alarm in a hundred of these (hard) development rows: the rate at which detectors are
# usually compared.
BLOCK_RATE, FLAG_RATE = 0.01, 0.02
# Far from saturation, so that logits can be recovered from float32 scores.
_RAW_TEMPERATURE = 16.0


class Track(Protocol):
    """Shows progress: of `total` units of `task`, `done` are made; `note` is free text."""

    def __call__(self, task: str, done: int, total: int, note: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Split:
    """One development file, with logits by the shipped weights."""

    name: str
    logits: Floats
    labels: Labels
    cosine: float


def train_injection(
    start: Start, data: Path, out: Path, config: FitConfig, track: Track
) -> CheckpointConfig:
    """Train, calibrate and write a checkpoint to `out`. A broken-off run in `out` is resumed.

    :raises WeightsError: `out` holds the state of a run with other settings.
    :raises ConfigError: a data file is not readable.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(out, start.teacher, start.tokenizer, _uncalibrated(start))
    policy = EncoderPolicy(weights=out)
    teacher = Encoder.load(policy, "cpu")
    dev = {name: read_rows(data / name) for name in (DEV, DEV_OOD)}
    rows = read_rows(data / TRAIN)
    trainer = _trainer(rows, teacher.tokenizer, start, config, out / STATE_NAME)
    trainer.fit(lambda p: track("fit", p.step, p.steps, f"loss {p.loss:.3f}"))
    write_checkpoint(out, trainer.tensors(), start.tokenizer, _uncalibrated(start))
    student = Encoder.load(policy, "cpu")
    splits = [
        score_split(name.removesuffix(".jsonl.gz"), part, student, teacher, track)
        for name, part in dev.items()
    ]
    settings = {**_uncalibrated(start), **calibrated(splits)}
    final = write_checkpoint(out, trainer.tensors(), start.tokenizer, settings)
    provenance = _provenance(start, data, config, final, time.monotonic() - started)
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    all_rows = [*rows, *dev[DEV], *dev[DEV_OOD]]
    card = model_card(final, config, splits, all_rows, continued=start.history is not None)
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    (out / STATE_NAME).unlink(missing_ok=True)
    return final


def _trainer(
    rows: Sequence[Row],
    tokenizer: WindowTokenizer,
    start: Start,
    config: FitConfig,
    state: Path,
) -> Trainer:
    plan = EpochPlan(
        tokenise(rows, tokenizer),
        tokenizer,
        body=config.window_tokens - 2,
        batch_tokens=config.batch_tokens,
    )
    return Trainer(config, plan, start, state)


def score_split(
    name: str, rows: Sequence[Row], student: Encoder, teacher: Encoder, track: Track
) -> Split:
    """Logits of every row, and the mean cosine to the base model's embeddings (every 8th row)."""
    scores: list[float] = []
    cosines: list[float] = []
    for at in range(0, len(rows), 64):
        windows = [student.tokenizer([row.text]) for row in rows[at : at + 64]]
        encoded = student.encode(windows)
        scores += [e.score for e in encoded]
        for ours, theirs in zip(encoded[::8], teacher.encode(windows[::8]), strict=True):
            if ours.embedding is not None and theirs.embedding is not None:
                cosines.append(float(ours.embedding @ theirs.embedding))
        track(name, min(at + 64, len(rows)), len(rows), "")
    p = np.clip(np.array(scores, np.float64), 1e-7, 1 - 1e-7)
    return Split(
        name,
        _RAW_TEMPERATURE * np.log(p / (1 - p)),
        np.array([row.label for row in rows], np.int64),
        float(np.mean(cosines)),
    )


def calibrated(splits: Sequence[Split]) -> dict[str, object]:
    """Calibration and thresholds over all splits."""
    logits = np.concatenate([split.logits for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    temperature, bias = evaluate.fit_temperature(logits, labels)
    scores = evaluate.calibrate(logits, temperature, bias)
    thresholds = {
        f"{rate:g}": evaluate.threshold_at(scores, labels, rate) for rate in evaluate.RATES
    }
    return {
        "calibration": {"temperature": temperature, "bias": bias},
        "thresholds": thresholds,
        "flag_at": thresholds[f"{FLAG_RATE:g}"],
        "block_at": thresholds[f"{BLOCK_RATE:g}"],
    }


def _uncalibrated(start: Start) -> dict[str, object]:
    return {
        "architecture": start.architecture.model_dump(),
        "window": WINDOW,
        "calibration": {"temperature": _RAW_TEMPERATURE, "bias": 0.0},
        "thresholds": {},
        "flag_at": 1.0,
        "block_at": 1.0,
    }


def _provenance(
    start: Start, data: Path, config: FitConfig, final: CheckpointConfig, seconds: float
) -> dict[str, object]:
    packages = ("vauban", "torch", "numpy", "tokenizers", "safetensors")
    return {
        "task": "injection",
        "start_sha256": dict(start.sha256s),
        "init": start.history,
        "data_sha256": {name: file_sha256(data / name) for name in (TRAIN, DEV, DEV_OOD)},
        "fit": asdict(config),
        WEIGHTS_NAME + "_sha256": final.weights_sha256,
        "packages": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "hardware": {
            "machine": platform.machine(),
            "torch_threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "last_session_s": round(seconds),
    }
