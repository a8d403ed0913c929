"""The end of a training run: int8 checkpoint -> scores by the guard -> calibration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vauban.detectors.bert import EncoderModel
from vauban.detectors.checkpoint import (
    LEXICAL_NAME,
    WEIGHTS_NAME,
    CheckpointConfig,
    WindowConfig,
    read_tensors,
    write_checkpoint,
)
from vauban.detectors.excerpts import excerpts
from vauban.detectors.windows import Ids, windows_worth
from vauban.guard import Guard
from vauban.policy import EncoderPolicy, Policy
from vauban.training import evaluate
from vauban.training.base import Start
from vauban.training.batches import collate
from vauban.training.evaluate import Floats, Labels
from vauban.training.labelled import Row
from vauban.training.lexical import BUCKETS
from vauban.training.provenance import run_facts
from vauban.types import Origin, Segment

# One false alarm in a hundred of these (hard) development rows: the rate at which detectors are
# usually compared.
BLOCK_RATE, FLAG_RATE = 0.01, 0.02
LEXICAL_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
_RAW_TEMPERATURE = 16.0
_ROWS_AT_ONCE = 256
_T = TypeVar("_T")
Indices = NDArray[np.int64]
Tensors = Mapping[str, NDArray[np.float32]]


class Track(Protocol):
    """Shows progress: of `total` units of `task`, `done` are made; `note` is free text."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Split:
    """One development file as the shipped weights see it, through the guard that serves.

    `deep` and `wide` are the two heads' parts of the logit of each window and excerpt, `row` says
    whose it is, and `window` which window it is an excerpt of (of a window: itself). `discount` is
    what is taken from the logit of each row; an excerpt counts if its window has `excerpts_from`.
    """

    name: str
    labels: Labels
    deep: Floats
    wide: Floats
    row: Indices
    window: Indices
    discount: Floats
    excerpts_from: float
    cosine: float

    def logits(self, lexical_weight: float = 1.0) -> Floats:
        """The worst of each row; a row without text has a very low one."""
        logits = self.deep + lexical_weight * self.wide
        counts = logits[self.window] >= self.excerpts_from
        counts |= self.window == np.arange(len(logits))
        worst = np.full(len(self.labels), -50.0)
        np.maximum.at(worst, self.row[counts], logits[counts])
        return worst - self.discount


def finish(
    out: Path,
    start: Start,
    tensors: Tensors,
    window: WindowConfig,
    development: Mapping[str, Sequence[Row]],
    track: Track,
) -> tuple[CheckpointConfig, list[Split], float]:
    """Weigh the lexical head, calibrate, and write the checkpoint to `out`.

    :param tensors: of both heads.
    :return: its configuration, the development files as it scores them, and the lexical weight.
    """
    arch = {**start.architecture.model_dump(), "lexical_buckets": BUCKETS}
    shell = uncalibrated(arch, window)
    checkpoint = write_checkpoint(out, tensors, start.tokenizer, shell)
    guard = Guard(Policy(encoder=EncoderPolicy(weights=out)))
    models = (
        EncoderModel.build(checkpoint.architecture, read_tensors(out, checkpoint)),
        EncoderModel.build(start.architecture, dict(start.teacher)),
    )
    splits = [
        score_split(name, rows, guard, models, window, track) for name, rows in development.items()
    ]
    weight = best_lexical_weight(splits)
    splits = [replace(split, wide=weight * split.wide) for split in splits]
    weighed = {**tensors, LEXICAL_NAME: np.float32(weight) * tensors[LEXICAL_NAME]}
    final = write_checkpoint(out, weighed, start.tokenizer, {**shell, **calibrated(splits)})
    return final, splits, weight


def score_split(
    name: str,
    rows: Sequence[Row],
    guard: Guard,
    models: tuple[EncoderModel, EncoderModel],
    window: WindowConfig,
    track: Track,
) -> Split:
    """Both heads' logits for all that is scored, and how far embeddings have moved (every 8th row).

    :param models: the new one, and the base model.
    """
    student = models[0]
    lexical = None if student.lexical is None else student.lexical.table.detach().numpy()
    entries = [np.empty((2, 0))]
    row: list[int] = []
    whole: list[int] = []
    discount, cosines = np.zeros(len(rows)), []
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        read: list[Ids] = []
        first = len(row)
        for i, one in enumerate(rows[at : at + _ROWS_AT_ONCE], start=at):
            windows = guard.read([Segment(one.text, Origin.USER)]).windows.per_model[0]
            row += [i] * len(windows)
            read += windows
            discount[i] = window.long_discount * np.log(windows_worth(windows, window.max_tokens))
            if i % 8 == 0 and windows:
                cosines.append(_cosine(*(_embedding(model, windows) for model in models)))
        whole += range(first, len(row))
        logits = _both_logits(student, read)
        suspicious = _suspicious(logits, window)
        parts = [(j, part) for j in suspicious for part in excerpts(read[j], lexical)]
        row += [row[first + j] for j, _ in parts]
        whole += [first + j for j, _ in parts]
        entries += [logits, _both_logits(student, [part for _, part in parts])]
        track(name, min(at + _ROWS_AT_ONCE, len(rows)), len(rows), "")
    deep, wide = np.concatenate(entries, axis=1)
    return Split(
        name,
        np.array([one.label for one in rows], np.int64),
        deep,
        wide,
        np.array(row, np.int64),
        np.array(whole, np.int64),
        discount,
        -np.inf if window.excerpts_from_logit is None else window.excerpts_from_logit,
        float(np.mean(cosines)),
    )


def _suspicious(logits: Floats, window: WindowConfig) -> list[int]:
    """Windows whose excerpts count at one of `LEXICAL_WEIGHTS`, by both heads' logits."""
    if window.excerpts_from_logit is None:
        return []
    least, most = min(LEXICAL_WEIGHTS), max(LEXICAL_WEIGHTS)
    highest = logits[0] + np.maximum(least * logits[1], most * logits[1])
    return [int(i) for i in np.flatnonzero(highest >= window.excerpts_from_logit)]


def _both_logits(model: EncoderModel, windows: Sequence[Ids]) -> Floats:
    """[2, windows]: of the deep and of the lexical head."""
    found = np.empty((2, len(windows)))
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
    for group in _chunks(order, 32):
        ids, real = _collated([windows[i] for i in group])
        with torch.inference_mode():
            found[0, group] = model.head(model.hidden(ids, real), real).numpy()
            found[1, group] = _lexical(model, ids, real)
    return found


def _collated(windows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    return collate([ids[1:-1] for ids in windows], (int(windows[0][0]), int(windows[0][-1])))


def _embedding(model: EncoderModel, windows: Sequence[Ids]) -> Tensor:
    """Of a text: the mean over its windows."""
    with torch.inference_mode():
        parts = [model(*_collated(group))[1] for group in _chunks(windows, 32)]
    return torch.cat(parts).mean(dim=0)


def _lexical(model: EncoderModel, ids: Tensor, real: Tensor) -> Floats:
    if model.lexical is None:
        return np.zeros(len(ids))
    return np.asarray(model.lexical(ids, real).numpy(), np.float64)


def _cosine(ours: Tensor, theirs: Tensor) -> float:
    return float(F.cosine_similarity(ours, theirs, dim=0))


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def best_lexical_weight(splits: Sequence[Split]) -> float:
    """Of `LEXICAL_WEIGHTS` the one with the highest recall, a mean over files and low rates."""

    def recall(weight: float) -> float:
        return float(
            np.mean(
                [
                    evaluate.recall_at(split.logits(weight), split.labels, rate)
                    for split in splits
                    for rate in evaluate.RATES
                ]
            )
        )

    return max(LEXICAL_WEIGHTS, key=recall)


def calibrated(splits: Sequence[Split]) -> dict[str, object]:
    """Calibration and thresholds over all splits."""
    logits = np.concatenate([split.logits() for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    temperature, bias = evaluate.fit_temperature(logits, labels)
    scores = evaluate.calibrate(logits, temperature, bias)
    thresholds = {
        f"{rate:g}": min(1.0, evaluate.threshold_at(scores, labels, rate))
        for rate in evaluate.RATES
    }
    return {
        "calibration": {"temperature": temperature, "bias": bias},
        "thresholds": thresholds,
        "flag_at": thresholds[f"{FLAG_RATE:g}"],
        "block_at": thresholds[f"{BLOCK_RATE:g}"],
    }


def uncalibrated(architecture: Mapping[str, object], window: WindowConfig) -> dict[str, object]:
    return {
        "architecture": architecture,
        "window": window.model_dump(),
        "calibration": {"temperature": _RAW_TEMPERATURE, "bias": 0.0},
        "thresholds": {},
        "flag_at": 1.0,
        "block_at": 1.0,
    }


def write_provenance(out: Path, final: CheckpointConfig, facts: Mapping[str, object]) -> None:
    """`facts` of the run, and what all runs tell: commit, packages, hardware, hash."""
    document = {
        **facts,
        WEIGHTS_NAME + "_sha256": final.weights_sha256,
        **run_facts(("vauban", "torch", "numpy", "tokenizers", "safetensors")),
    }
    text = json.dumps(document, indent=2) + "\n"
    (out / "provenance.json").write_text(text, encoding="utf-8")
