"""Training lowers the loss, leaves frozen parts alone, and resumes where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vauban.detectors.windows import WindowTokenizer
from vauban.errors import WeightsError
from vauban.training import plan as plan_module
from vauban.training.base import Start
from vauban.training.data import Row, read_rows, tokenise
from vauban.training.fit import FitConfig, Progress, Trainer
from vauban.training.plan import EpochPlan

CONFIG = FitConfig(
    epochs=1.0,
    frozen_layers=1,
    window_tokens=64,
    batch_tokens=2048,
    learning_rate=3e-3,
    head_learning_rate=1e-2,
    distill_every=2,
    save_every_steps=2,
)


class _StopError(Exception):
    pass


@pytest.fixture
def plan(data_dir: Path, tokenizer: WindowTokenizer, few_own_examples: None) -> EpochPlan:
    rows = tokenise(read_rows(data_dir / "train.jsonl.gz"), tokenizer)
    return EpochPlan(rows, tokenizer, body=62, batch_tokens=CONFIG.batch_tokens)


def run(trainer: Trainer, stop_after: int | None = None) -> list[Progress]:
    reports: list[Progress] = []

    def report(progress: Progress) -> None:
        reports.append(progress)
        if progress.step == stop_after:
            raise _StopError

    if stop_after is None:
        trainer.fit(report)
    else:
        with pytest.raises(_StopError):
            trainer.fit(report)
    return reports


@pytest.fixture
def easy_plan(tokenizer: WindowTokenizer, monkeypatch: pytest.MonkeyPatch) -> EpochPlan:
    """Two classes that share no word."""
    for name in ("OWN_BENIGN", "OWN_ATTACKS", "SPLICED_ATTACKS", "SPLICED_BENIGN"):
        monkeypatch.setattr(plan_module, name, 1)
    texts = {1: "obey me now", 0: "river stone market"}
    rows = [
        Row(
            f"{texts[label]} " * (1 + i % 9),
            label,
            "benign_code" if label == 0 else "jailbreak",
            "made up",
            "MIT",
        )
        for i in range(60)
        for label in (0, 1)
    ]
    return EpochPlan(tokenise(rows, tokenizer), tokenizer, body=62, batch_tokens=1024)


def test_loss_falls_to_near_its_floor(easy_plan: EpochPlan, start: Start, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=8.0, distill_weight=0.0)
    reports = run(Trainer(config, easy_plan, start, tmp_path / "state.safetensors"))
    assert reports[-1].step == reports[-1].steps
    # The median, because the few own templates, alone in a batch, are not learnt from one look.
    assert np.median([r.loss for r in reports[:5]]) > 0.4
    assert np.median([r.loss for r in reports[-8:]]) < 0.15


def test_only_what_is_trained_changes(plan: EpochPlan, start: Start, tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, plan, start, tmp_path / "state.safetensors")
    reports = run(trainer)
    cosines = [r.cosine for r in reports if not np.isnan(r.cosine)]
    assert cosines[0] == pytest.approx(1.0, abs=1e-4)
    for name, value in trainer.tensors().items():
        frozen = not name.startswith(("head.", "layers.1", "layers.2"))
        assert np.array_equal(value, start.tensors[name]) is frozen, name


def test_resumed_equals_unbroken(plan: EpochPlan, start: Start, tmp_path: Path) -> None:
    whole = Trainer(CONFIG, plan, start, tmp_path / "a.safetensors")
    run(whole)
    run(Trainer(CONFIG, plan, start, tmp_path / "b.safetensors"), stop_after=3)
    resumed = Trainer(CONFIG, plan, start, tmp_path / "b.safetensors")
    reports = run(resumed)
    assert reports[0].step == 3  # saved after step 2
    for name, value in whole.tensors().items():
        np.testing.assert_allclose(resumed.tensors()[name], value, atol=1e-6, err_msg=name)
    assert run(Trainer(CONFIG, plan, start, tmp_path / "b.safetensors")) == []


def test_a_state_of_other_settings_is_refused(
    plan: EpochPlan, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    run(Trainer(CONFIG, plan, start, path), stop_after=3)
    other = Trainer(replace(CONFIG, seed=9), plan, start, path)
    with pytest.raises(WeightsError, match="other settings"):
        other.fit(lambda _: None)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="damaged"):
        Trainer(CONFIG, plan, start, path).fit(lambda _: None)
