"""Two runs that differ in FGSM only, and what is counted as a flip from inside."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from benchmarks.fgsm_alone import ARMS, LENGTHS, Clean, chosen, from_inside, settings

from vauban.detectors.bert import EncoderModel
from vauban.detectors.checkpoint import Architecture
from vauban.training.batches import collate
from vauban.training.evaluate import Interval
from vauban.training.labelled import Row

FRAME = (1, 2)
ARCH = Architecture(
    vocab_size=50,
    hidden_size=16,
    layers=2,
    heads=2,
    intermediate_size=24,
    positions=32,
    layer_norm_eps=1e-12,
    head_queries=2,
    head_hidden_size=8,
    lexical_buckets=256,
)


@pytest.fixture
def model() -> EncoderModel:
    torch.manual_seed(0)
    empty = EncoderModel(ARCH).state_dict()
    return EncoderModel.build(ARCH, {n: torch.randn(t.shape).numpy() for n, t in empty.items()})


@pytest.fixture
def windows() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(3, 50, size, np.int32) for size in (3, 9, 14, 20)]


def logits(model: EncoderModel, windows: list[np.ndarray]) -> list[float]:
    with torch.inference_mode():
        return sorted(model(*collate(windows, FRAME))[0].tolist())


def test_the_runs_differ_in_fgsm_only() -> None:
    trained = [asdict(settings(2048, 1, after)) for after in ARMS.values() if after is not None]
    differing = {name for name in trained[0] if trained[0][name] != trained[1][name]}
    assert differing == {"adversarial_after"}
    assert all(each["hard_after"] == 1.0 for each in trained)


def test_a_shift_flips_what_stands_at_the_threshold_and_nothing_far_above(
    model: EncoderModel, windows: list[np.ndarray]
) -> None:
    found = logits(model, windows)
    just_above = from_inside(model, windows, FRAME, 1, found[-1] - 1e-4)
    assert len(just_above) == 2 * len(LENGTHS)
    assert all(shift.detections == 1 and shift.flipped.value == 1 for shift in just_above)
    far_below = from_inside(model, windows, FRAME, 1, found[0] - 1e6)
    assert all(shift.detections == 4 and shift.flipped.value == 0 for shift in far_below)


def test_only_attacks_that_every_model_detects_are_attacked() -> None:
    rows = [
        Row("all find it", 1),
        Row("one misses it", 1),
        Row("harmless", 0),
        Row("all find it too", 1),
    ]
    nothing = Interval(0, 0, 0)
    found = {
        "one": Clean(0.5, nothing, nothing, nothing),
        "other": Clean(0.1, nothing, nothing, nothing),
    }
    scores = {
        "one": np.array([0.9, 0.4, 0.9, 0.5]),
        "other": np.array([0.2, 0.9, 0.9, 0.1]),
    }
    assert sorted(chosen(rows, scores, found, 9)) == ["all find it", "all find it too"]
    assert len(chosen(rows, scores, found, 1)) == 1
