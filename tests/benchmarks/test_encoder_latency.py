"""The parts of the one-core benchmark that decide what its numbers mean."""

import numpy as np
import pytest
import torch
from benchmarks.encoder_latency import (
    SHAPES,
    Cost,
    Int8Dense,
    Scored,
    cost,
    sample,
    with_int8,
    worth_it,
)

from vauban.detectors import checkpoint
from vauban.detectors.bert import Dense

ROWS = [{"text": f"{label}-{i}", "label": label} for label in (0, 1) for i in range(20)]


def test_every_shape_is_one_that_the_shipped_windows_have():
    longest = checkpoint.read_config(checkpoint.shipped()).window.max_tokens
    assert next(iter(SHAPES.values())) == (longest,)
    assert max(max(lengths) for lengths in SHAPES.values()) <= longest


def test_sample_is_fixed_and_has_no_more_than_asked():
    chosen = sample(ROWS, 5, 100)
    assert chosen == sample(ROWS, 5, 100)
    assert [label for _, label in chosen] == [1] * 5 + [0] * 20
    assert len(set(chosen)) == len(chosen)
    assert all(text.startswith(str(label)) for text, label in chosen)


def test_cost_counts_what_float32_would_have_said():
    labels = np.array([1, 1, 0, 0])
    exact = Scored(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False]))
    worse = Scored(np.array([3.0, 0.5, 1.0, 0.0]), np.array([True, False, False, False]))
    assert cost(exact, exact, labels) == Cost(1.0, 0.0, 0.0, 0.0)
    found = cost(worse, exact, labels)
    assert (found.auc, found.auc_points_lost) == pytest.approx((0.75, 25.0))
    assert (found.largest_logit_gap, found.verdicts_changed) == pytest.approx((1.5, 25.0))


def test_an_arm_must_be_fast_and_exact_and_its_loss_known():
    good, bad = Cost(0.9, 0.1, 0.1, 0.0), Cost(0.9, 0.2, 0.1, 0.0)
    speedups = {"slow": 1.9, "fast": 2.0, "inexact": 3.0, "unknown": 3.0}
    costs = {"slow": good, "fast": good, "inexact": bad}
    assert worth_it(speedups, costs) == ["fast"]


def test_int8_replaces_every_dense_of_a_copy():
    model = torch.nn.Sequential(Dense(16, 32), torch.nn.Sequential(Dense(32, 8)))
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    small = with_int8(model)
    assert sum(isinstance(m, Int8Dense) for m in small.modules()) == 2
    assert not any(isinstance(m, Dense) for m in small.modules())
    assert sum(isinstance(m, Dense) for m in model.modules()) == 2
    x = torch.randn(5, 16, generator=generator)
    with torch.inference_mode():
        exact, found = model(x), small(x)
    assert (exact - found).abs().max() < 0.05 * exact.abs().max()
