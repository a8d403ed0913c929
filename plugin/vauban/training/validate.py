"""Leave-one-source-out validation: how settings carry over to attacks by strangers.

A model fitted on all sources but one is asked for the attacks of that one. Texts composed with the
held-out source are left out as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from vauban.detectors.bert import EncoderModel
from vauban.detectors.windows import Ids, spans
from vauban.training import evaluate
from vauban.training.base import Start
from vauban.training.batches import collate
from vauban.training.evaluate import Floats
from vauban.training.fit import FitConfig, Trainer
from vauban.training.labelled import Row
from vauban.training.lexicon import Lexicon
from vauban.training.mixture import Mixture
from vauban.training.reader import Reader

MIN_ATTACKS, MAX_ATTACKS, MAX_BENIGN = 100, 200, 400


@dataclass(frozen=True, slots=True)
class Fold:
    """How a setting did on the attacks of a source it was not fitted on; rates in [0, 1]."""

    source: str
    setting: int
    attacks: int
    auc: float
    recall: float


def sources(rows: Sequence[Row]) -> list[str]:
    """Sources with enough attacks of their own to be held out, largest first."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.label and not row.source.startswith("composite"):
            counts[row.source] = counts.get(row.source, 0) + 1
    enough = [source for source, count in counts.items() if count >= MIN_ATTACKS]
    return sorted(enough, key=lambda source: (-counts[source], source))


def leave_one_out(
    start: Start,
    rows: Sequence[Row],
    benign: Sequence[Row],
    reader: Reader,
    configs: Sequence[FitConfig],
    report: Callable[[Fold], None],
    *,
    device: str = "cpu",
    workers: int = 0,
) -> list[Fold]:
    """Fit every setting once per held-out source.

    :param rows: training rows; the attacks of each source in turn are the test.
    :param benign: harmless rows that set the threshold (1% false positives).
    :param device: where to fit; :param workers: processes that draw examples ahead, 0: none.
    """
    random = np.random.default_rng(0)
    calm = _some([row for row in benign if row.label == 0], MAX_BENIGN, random)
    folds = []
    for source in sources(rows):
        held = [row for row in rows if row.label and row.source == source]
        tested = [*_some(held, MAX_ATTACKS, random), *calm]
        kept = [row for row in rows if source not in row.source]
        lexicon = Lexicon.fit(
            (ids, row.label) for row in kept for ids in reader.labelled(row.text, row.label)
        )
        for setting, config in enumerate(configs):
            model = _fit(start, kept, reader, lexicon, config, device, workers)
            logits = _worst_logits(model, tested, reader, config)
            labels = np.array([row.label for row in tested], np.int64)
            fold = Fold(
                source,
                setting,
                int(labels.sum()),
                evaluate.auc(logits, labels),
                evaluate.recall_at(logits, labels, 0.01),
            )
            report(fold)
            folds.append(fold)
    return folds


def _fit(
    start: Start,
    rows: Sequence[Row],
    reader: Reader,
    lexicon: Lexicon,
    config: FitConfig,
    device: str,
    workers: int,
) -> EncoderModel:
    body = config.window_tokens - 2
    mixture = Mixture(rows, reader, lexicon, body=body, overlap=config.overlap_tokens)
    with TemporaryDirectory() as scratch:
        state = Path(scratch) / "state.safetensors"
        trainer = Trainer(config, mixture, reader.frame, start, state, device, workers)
        trainer.fit(lambda _: None)
        return EncoderModel.build(start.architecture, trainer.tensors())


def _worst_logits(
    model: EncoderModel, rows: Sequence[Row], reader: Reader, config: FitConfig
) -> Floats:
    """The deep head's worst window of each row."""
    worst = np.full(len(rows), -50.0)
    for i, row in enumerate(rows):
        windows: list[Ids] = [
            ids[a:b]
            for ids in reader(row.text)
            for a, b in spans(len(ids), config.window_tokens - 2, config.overlap_tokens)
        ]
        if windows:
            ids, real = collate(windows, reader.frame)
            with torch.inference_mode():
                worst[i] = float(model(ids, real)[0].max())
    return worst


def _some(rows: Sequence[Row], most: int, random: np.random.Generator) -> list[Row]:
    chosen = random.permutation(len(rows))[:most]
    return [rows[i] for i in sorted(chosen)]
