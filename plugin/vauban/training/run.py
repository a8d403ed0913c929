"""The whole training run: data -> fit -> int8 checkpoint -> scores by the real encoder -> card."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vauban.detectors.checkpoint import (
    LEXICAL_NAME,
    CheckpointConfig,
    read_config,
    read_tensors,
    write_checkpoint,
)
from vauban.detectors.windows import Ids, WindowTokenizer
from vauban.errors import ConfigError
from vauban.policy import EncoderPolicy
from vauban.training.base import Start
from vauban.training.batches import torch_device
from vauban.training.card import model_card
from vauban.training.finish import Track, finish, uncalibrated, write_provenance
from vauban.training.fit import FitConfig, Trainer
from vauban.training.labelled import Row, labelled_rows
from vauban.training.lexical import fit_lexical
from vauban.training.lexicon import Lexicon
from vauban.training.mixture import Mixture
from vauban.training.pools import pools
from vauban.training.provenance import file_sha256
from vauban.training.reader import Reader

TRAIN, DEV, DEV_OOD = "train", "dev", "dev_ood"
STATE_NAME = "training-state.safetensors"
LEXICAL_POOLS = 320
_LEXICAL_SEED = 7_001  # other texts than the deep head was fitted on


def train_injection(
    start: Start,
    data: Path,
    out: Path,
    config: FitConfig,
    track: Track,
    *,
    device: str = "auto",
    workers: int = 0,
    hold_out: Sequence[str] = (),
) -> CheckpointConfig:
    """Train, calibrate and write a checkpoint to `out`. A broken-off run in `out` is resumed.

    :param device: where to fit; "auto" takes CUDA where there is one.
    :param workers: processes that draw examples ahead; 0: none.
    :param hold_out: sources (parts of their names) whose rows are left out of training.
    :raises WeightsError: `out` holds the state of a run with other settings.
    :raises ConfigError: a data file is missing or not readable.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    start = without_lexical(start)
    shell = uncalibrated(start.architecture.model_dump(), config.window)
    write_checkpoint(out, start.teacher, start.tokenizer, shell)
    files = data_files(data)
    every_row = {name: list(labelled_rows(path)) for name, path in files.items()}
    rows = [r for r in every_row.pop(TRAIN) if not any(part in r.source for part in hold_out)]
    reader = Reader(WindowTokenizer.load(EncoderPolicy(weights=out)))
    state = out / STATE_NAME
    deep, table = _fit_heads(start, rows, reader, config, state, device, workers, track)
    tensors = {**deep, LEXICAL_NAME: table}
    final, splits, weight = finish(out, start, tensors, config.window, every_row, track)
    facts = {
        "task": "injection",
        "start_sha256": dict(start.sha256s),
        "init": start.history,
        "data_sha256": {path.name: file_sha256(path) for path in files.values()},
        "fit": asdict(config),
        "last_session_s": round(time.monotonic() - started),
        "lexical_weight": weight,
        "hold_out": list(hold_out),
    }
    write_provenance(out, final, facts)
    all_rows = [*rows, *(row for part in every_row.values() for row in part)]
    card = model_card(final, config, splits, all_rows, continued=start.history is not None)
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    state.unlink(missing_ok=True)
    return final


def average(
    checkpoints: Sequence[Path], start: Start, data: Path, out: Path, track: Track
) -> CheckpointConfig:
    """A checkpoint with the mean of several's weights, calibrated anew (arXiv 2203.05482).

    :param checkpoints: directories of runs that began at the same base model. One: its weights.
        A mean of runs counts as many times as it has runs.
    :raises ConfigError: none, of different architectures, or without a provenance file.
    """
    if not checkpoints:
        raise ConfigError("an average needs a checkpoint")
    configs = [read_config(path) for path in checkpoints]
    if any(c.architecture != configs[0].architecture for c in configs[1:]):
        raise ConfigError("the checkpoints differ in architecture")
    members = [read_tensors(*pair) for pair in zip(checkpoints, configs, strict=True)]
    runs = [_past_runs(path) for path in checkpoints]
    weights = [len(run) for run in runs]
    every_run = [facts for run in runs for facts in run]
    settings = FitConfig(**every_run[0]["fit"])
    tensors: dict[str, NDArray[np.float32]] = {
        name: np.average([m[name] for m in members], axis=0, weights=weights).astype(np.float32)
        for name in members[0]
    }
    files = data_files(data)
    every_row = {name: list(labelled_rows(path)) for name, path in files.items()}
    development = {name: rows for name, rows in every_row.items() if name != TRAIN}
    window = settings.window
    out.mkdir(parents=True, exist_ok=True)
    final, splits, weight = finish(out, without_lexical(start), tensors, window, development, track)
    facts = {
        "task": "injection, mean of weights",
        "data_sha256": {path.name: file_sha256(path) for path in files.values()},
        "lexical_weight": weight,
        "members": every_run,
    }
    write_provenance(out, final, facts)
    all_rows = [row for rows in every_row.values() for row in rows]
    card = model_card(final, settings, splits, all_rows, runs=len(every_run))
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return final


def _past_runs(checkpoint: Path) -> list[dict[str, Any]]:
    """Provenance of the runs whose mean a checkpoint is; of a single run its own."""
    try:
        document = json.loads((checkpoint / "provenance.json").read_text(encoding="utf-8"))
        runs: list[dict[str, Any]] = document.get("members", [document])
        FitConfig(**runs[0]["fit"])
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(f"{checkpoint}: no provenance.json of a training run") from error
    return runs


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
    workers: int,
    track: Track,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """The deep network's weights, and the table of the lexical head."""
    lexicon = Lexicon.fit(
        (ids, row.label) for row in rows for ids in reader.labelled(row.text, row.label)
    )
    body, overlap = config.window_tokens - 2, config.overlap_tokens
    mixture = Mixture(rows, reader, lexicon, body=body, overlap=overlap)
    trainer = Trainer(config, mixture, reader.frame, start, state, device, workers)
    trainer.fit(lambda p: track("fit", p.pool, p.pools, f"loss {p.loss:.3f}, learned {p.kept:.0%}"))
    shown = _lexical_windows(mixture, lexicon, workers, track)
    return trainer.tensors(), fit_lexical(shown, reader.frame, config.seed, torch_device(device))


def _lexical_windows(
    mixture: Mixture, lexicon: Lexicon, workers: int, track: Track
) -> Iterator[tuple[Ids, int]]:
    drawn = pools(mixture, _LEXICAL_SEED, 0, LEXICAL_POOLS, workers)
    for number, pool in enumerate(drawn, 1):
        for example in pool:
            yield lexicon.likeliest(example.windows, 1)[0], example.label
        track("lexical head", number, LEXICAL_POOLS, "")
