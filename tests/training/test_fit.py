"""Training lowers the loss, leaves frozen parts alone, and resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vauban.errors import WeightsError
from vauban.training.base import Start
from vauban.training.fit import FitConfig, Progress, Trainer, shifted
from vauban.training.labelled import Row
from vauban.training.lexicon import Lexicon
from vauban.training.mixture import Mixture, MixtureConfig
from vauban.training.reader import Reader

CONFIG = FitConfig(
    examples=4 * 64,
    frozen_layers=1,
    window_tokens=64,
    batch_tokens=2048,
    learning_rate=3e-3,
    head_learning_rate=1e-2,
    distill_every=2,
    hard_after=1.0,
    ema=0.9,
)


class _StopError(Exception):
    pass


def run(trainer: Trainer, stop_after: int | None = None) -> list[Progress]:
    reports: list[Progress] = []

    def report(progress: Progress) -> None:
        reports.append(progress)
        if progress.pool == stop_after:
            raise _StopError

    if stop_after is None:
        trainer.fit(report)
    else:
        with pytest.raises(_StopError):
            trainer.fit(report)
    return reports


@pytest.fixture
def train(
    small_mixture: Mixture, reader: Reader, start: Start, tmp_path: Path
) -> Callable[..., Trainer]:
    def make(
        config: FitConfig = CONFIG, state: str = "state", mixture: Mixture = small_mixture
    ) -> Trainer:
        return Trainer(config, mixture, reader.frame, start, tmp_path / f"{state}.safetensors")

    return make


@pytest.fixture
def easy_mixture(reader: Reader, small_pools: None) -> Mixture:
    """Two classes that share no word."""
    texts = {1: "obey me now ", 0: "river stone market "}
    rows = [
        Row(texts[label] * (1 + i % 9), label, "benign_code" if label == 0 else "jailbreak")
        for i in range(60)
        for label in (0, 1)
    ]
    lexicon = Lexicon.fit((ids, row.label) for row in rows for ids in reader(row.text))
    only_rows = MixtureConfig(
        grammar=0, spliced=0, patchwork=0, disturbed_attacks=0, disturbed_benign=0
    )
    return Mixture(rows, reader, lexicon, body=62, overlap=20, config=only_rows)


@pytest.mark.parametrize("hard_after", [1.0, 0.5])
def test_loss_falls_to_near_its_floor(
    train: Callable[..., Trainer], easy_mixture: Mixture, hard_after: float
) -> None:
    config = replace(
        CONFIG,
        examples=16 * 64,
        distill_weight=0.0,
        hard_after=hard_after,
        batch_tokens=512,
        word_dropout=0.0,
    )
    reports = run(train(config, mixture=easy_mixture))
    assert reports[-1].pool == reports[-1].pools
    assert reports[0].loss > 0.3
    learned = reports if hard_after == 1.0 else reports[:8]
    assert learned[-1].loss < 0.2
    if hard_after < 1.0:  # what is known is no longer learned from
        assert reports[0].kept == 1.0
        assert reports[-1].kept < 0.5


def test_only_what_is_trained_changes(train: Callable[..., Trainer], start: Start) -> None:
    trainer = train()
    reports = run(trainer)
    assert reports[0].cosine == pytest.approx(1.0, abs=0.2)
    for name, value in trainer.tensors().items():
        frozen = not name.startswith(("head.", "layers.1", "layers.2"))
        assert np.array_equal(value, start.tensors[name]) is frozen, name


@pytest.mark.parametrize("adversarial_after", [1.0, 0.0])
def test_resumed_equals_unbroken(train: Callable[..., Trainer], adversarial_after: float) -> None:
    config = replace(CONFIG, adversarial_after=adversarial_after, hard_after=0.5)
    whole = train(config, "a")
    run(whole)
    run(train(config, "b"), stop_after=3)
    resumed = train(config, "b")
    reports = run(resumed)
    assert reports[0].pool == 4
    for name, value in whole.tensors().items():
        np.testing.assert_allclose(resumed.tensors()[name], value, atol=1e-6, err_msg=name)
    assert run(train(config, "b")) == []


def test_a_state_of_other_settings_is_refused(
    train: Callable[..., Trainer], tmp_path: Path
) -> None:
    run(train(), stop_after=1)
    with pytest.raises(WeightsError, match="other settings"):
        train(replace(CONFIG, seed=9)).fit(lambda _: None)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="damaged"):
        train().fit(lambda _: None)


def test_a_shift_is_as_long_as_asked_and_leaves_padding_alone() -> None:
    x, gradient = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    real = torch.arange(5) < torch.tensor([[5], [3]])
    moved = shifted(x, gradient, real, 0.5) - x
    assert (moved[1, 3:] == 0).all()
    for row, count in enumerate((5, 3)):
        expected = 0.5 * float(x[row, :count].norm(dim=-1).mean())
        assert float(moved[row].norm()) == pytest.approx(expected, rel=1e-4)
    assert (shifted(x, torch.zeros_like(x), real, 0.5) == x).all()
