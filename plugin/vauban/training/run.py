"""The whole training run: data -> fit -> int8 checkpoint -> scores by the real encoder -> card."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vauban.detectors.bert import EncoderModel, mean_pool
from vauban.detectors.checkpoint import (
    WEIGHTS_NAME,
    CheckpointConfig,
    read_tensors,
    write_checkpoint,
)
from vauban.detectors.windows import Ids, WindowTokenizer
from vauban.errors import ConfigError
from vauban.guard import Guard
from vauban.policy import EncoderPolicy, Policy
from vauban.training import evaluate
from vauban.training.base import Start
from vauban.training.card import model_card
from vauban.training.evaluate import Floats, Labels
from vauban.training.fit import FitConfig, Trainer, collate
from vauban.training.labelled import Row, labelled_rows
from vauban.training.lexical import BUCKETS, fit_lexical
from vauban.training.lexicon import Lexicon
from vauban.training.mixture import Mixture
from vauban.training.reader import Reader, file_sha256
from vauban.types import Origin, Segment

TRAIN, DEV, DEV_OOD = "train", "dev", "dev_ood"
STATE_NAME = "training-state.safetensors"
# One false alarm in a hundred of these (hard) development rows: the rate at which detectors are
# usually compared.
BLOCK_RATE, FLAG_RATE = 0.01, 0.02
LEXICAL_NAME = "lexical.table"
LEXICAL_POOLS = 120
LEXICAL_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
_LEXICAL_SEED = 7_001  # other texts than the deep head was fitted on
_RAW_TEMPERATURE = 16.0


class Track(Protocol):
    """Shows progress: of `total` units of `task`, `done` are made; `note` is free text."""

    def __call__(self, task: str, done: int, total: int, note: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Split:
    """One development file as the shipped weights see it, through the guard that serves.

    `deep` and `wide` are the two heads' parts of each window's logit; `row` says whose it is.
    """

    name: str
    labels: Labels
    deep: Floats
    wide: Floats
    row: NDArray[np.int64]
    cosine: float

    def logits(self, lexical_weight: float = 1.0) -> Floats:
        """The worst window of each row; a row without text has a very low one."""
        worst = np.full(len(self.labels), -50.0)
        np.maximum.at(worst, self.row, self.deep + lexical_weight * self.wide)
        return worst


def train_injection(
    start: Start,
    data: Path,
    out: Path,
    config: FitConfig,
    track: Track,
    *,
    device: str = "auto",
    hold_out: Sequence[str] = (),
) -> CheckpointConfig:
    """Train, calibrate and write a checkpoint to `out`. A broken-off run in `out` is resumed.

    :param device: where to fit; "auto" takes CUDA where there is one.
    :param hold_out: sources (parts of their names) whose rows are left out of training.
    :raises WeightsError: `out` holds the state of a run with other settings.
    :raises ConfigError: a data file is missing or not readable.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    start = without_lexical(start)
    shell = _uncalibrated(start.architecture.model_dump(), config)
    write_checkpoint(out, start.teacher, start.tokenizer, shell)
    files = data_files(data)
    every_row = {name: list(labelled_rows(path)) for name, path in files.items()}
    rows = [r for r in every_row[TRAIN] if not any(part in r.source for part in hold_out)]
    reader = Reader(WindowTokenizer.load(EncoderPolicy(weights=out)))
    deep, table = _fit_heads(start, rows, reader, config, out / STATE_NAME, device, track)
    tensors = {**deep, LEXICAL_NAME: table}
    shell["architecture"] = {**start.architecture.model_dump(), "lexical_buckets": BUCKETS}
    checkpoint = write_checkpoint(out, tensors, start.tokenizer, shell)
    guard = Guard(Policy(encoder=EncoderPolicy(weights=out)))
    models = (
        EncoderModel.build(checkpoint.architecture, read_tensors(out, checkpoint)),
        EncoderModel.build(start.architecture, dict(start.teacher)),
    )
    splits = [
        score_split(name, part, guard, models, track)
        for name, part in every_row.items()
        if name != TRAIN
    ]
    weight = best_lexical_weight(splits)
    tensors[LEXICAL_NAME] = np.float32(weight) * table
    splits = [replace(split, wide=weight * split.wide) for split in splits]
    final = write_checkpoint(out, tensors, start.tokenizer, {**shell, **calibrated(splits)})
    provenance = _provenance(start, data, config, final, time.monotonic() - started)
    provenance |= {"lexical_weight": weight, "hold_out": list(hold_out)}
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    all_rows = [*rows, *(row for name in every_row if name != TRAIN for row in every_row[name])]
    card = model_card(final, config, splits, all_rows, continued=start.history is not None)
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    (out / STATE_NAME).unlink(missing_ok=True)
    return final


def data_files(data: Path) -> dict[str, Path]:
    """The files of a data directory: `train` and `dev`, and `dev_ood` where there is one.

    :raises ConfigError: one of the first two is missing.
    """
    files: dict[str, Path] = {}
    for name in (TRAIN, DEV, DEV_OOD):
        paths = (data / f"{name}.jsonl.gz", data / f"{name}.jsonl")
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            files[name] = path
        elif name != DEV_OOD:
            raise ConfigError(f"{data}: has no {name}.jsonl or {name}.jsonl.gz")
    return files


def without_lexical(start: Start) -> Start:
    """The lexical head is always fitted anew, whatever a run goes on from."""
    deep = start.architecture.model_copy(update={"lexical_buckets": 0})
    tensors = {name: value for name, value in start.tensors.items() if name != LEXICAL_NAME}
    return replace(start, architecture=deep, tensors=tensors)


def _fit_heads(
    start: Start,
    rows: Sequence[Row],
    reader: Reader,
    config: FitConfig,
    state: Path,
    device: str,
    track: Track,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """The deep network's weights, and the table of the lexical head."""
    lexicon = Lexicon.fit(
        (ids, row.label) for row in rows for ids in reader.labelled(row.text, row.label)
    )
    body, overlap = config.window_tokens - 2, config.overlap_tokens
    mixture = Mixture(rows, reader, lexicon, body=body, overlap=overlap)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(config, mixture, reader.frame, start, state, device)
    trainer.fit(lambda p: track("fit", p.pool, p.pools, f"loss {p.loss:.3f}, learned {p.kept:.0%}"))
    shown = _lexical_windows(mixture, lexicon, track)
    return trainer.tensors(), fit_lexical(shown, reader.frame, config.seed)


def _lexical_windows(mixture: Mixture, lexicon: Lexicon, track: Track) -> Iterator[tuple[Ids, int]]:
    for number in range(LEXICAL_POOLS):
        for example in mixture.pool(_LEXICAL_SEED, number):
            yield lexicon.likeliest(example.windows, 1)[0], example.label
        track("lexical head", number + 1, LEXICAL_POOLS, "")


def score_split(
    name: str,
    rows: Sequence[Row],
    guard: Guard,
    models: tuple[EncoderModel, EncoderModel],
    track: Track,
) -> Split:
    """Both heads' logits for every window, and how far embeddings have moved (every 8th row).

    :param models: the new one, and the base model.
    """
    student, teacher = models
    deep, wide, owner = [np.empty(0)], [np.empty(0)], [np.empty(0, np.int64)]
    cosines: list[float] = []
    for at in range(0, len(rows), 64):
        for i, row in enumerate(rows[at : at + 64]):
            windows = guard.read([Segment(row.text, Origin.USER)]).windows.per_model[0]
            for group in _chunks(windows, 32):
                frame = (int(group[0][0]), int(group[0][-1]))
                ids, real = collate([ids[1:-1] for ids in group], frame)
                with torch.inference_mode():
                    x = student.hidden(ids, real)
                    deep.append(student.head(x, real).numpy())
                    wide.append(_lexical(student, ids, real))
                    if i % 8 == 0:
                        cosines.append(_cosine(mean_pool(x, real), teacher(ids, real)[1]))
                owner.append(np.full(len(group), at + i, np.int64))
        track(name, min(at + 64, len(rows)), len(rows), "")
    return Split(
        name,
        np.array([row.label for row in rows], np.int64),
        np.concatenate(deep),
        np.concatenate(wide),
        np.concatenate(owner),
        float(np.mean(cosines)),
    )


def _lexical(model: EncoderModel, ids: Tensor, real: Tensor) -> Floats:
    if model.lexical is None:
        return np.zeros(len(ids))
    return np.asarray(model.lexical(ids, real).numpy(), np.float64)


def _cosine(ours: Tensor, theirs: Tensor) -> float:
    """Between the embeddings of a text: the means over its windows."""
    return float(F.cosine_similarity(ours.mean(dim=0), theirs.mean(dim=0), dim=0))


def _chunks(windows: Sequence[Ids], size: int) -> Iterator[Sequence[Ids]]:
    for at in range(0, len(windows), size):
        yield windows[at : at + size]


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


def _uncalibrated(architecture: Mapping[str, object], config: FitConfig) -> dict[str, object]:
    return {
        "architecture": architecture,
        "window": {"max_tokens": config.window_tokens, "overlap_tokens": config.overlap_tokens},
        "calibration": {"temperature": _RAW_TEMPERATURE, "bias": 0.0},
        "thresholds": {},
        "flag_at": 1.0,
        "block_at": 1.0,
    }


def _commit() -> str:
    """The commit of the checkout this runs from, "-dirty" where files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    place = Path(__file__).parent
    found = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def _provenance(
    start: Start, data: Path, config: FitConfig, final: CheckpointConfig, seconds: float
) -> dict[str, object]:
    packages = ("vauban", "torch", "numpy", "tokenizers", "safetensors")
    return {
        "task": "injection",
        "commit": _commit(),
        "start_sha256": dict(start.sha256s),
        "init": start.history,
        "data_sha256": {path.name: file_sha256(path) for path in data_files(data).values()},
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
