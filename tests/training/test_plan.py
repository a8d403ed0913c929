"""Epochs are reproducible, balanced as declared, and bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vauban.detectors.windows import WindowTokenizer
from vauban.training import augment
from vauban.training.data import read_rows, tokenise
from vauban.training.fit import collate
from vauban.training.plan import MAX_BAG, EpochPlan

BODY, BATCH_TOKENS = 60, 1024


@pytest.fixture
def plan(data_dir: Path, tokenizer: WindowTokenizer) -> EpochPlan:
    rows = tokenise(read_rows(data_dir / "train.jsonl.gz"), tokenizer)
    return EpochPlan(rows, tokenizer, body=BODY, batch_tokens=BATCH_TOKENS)


def flat(plan: EpochPlan, seed: int, epoch: int) -> list[tuple[int, list[list[int]]]]:
    return [
        (example.label, [window.tolist() for window in example.windows])
        for batch in plan.batches(seed, epoch)
        for example in batch
    ]


def test_an_epoch_is_a_function_of_seed_and_number(plan: EpochPlan) -> None:
    assert flat(plan, 1, 0) == flat(plan, 1, 0)
    assert flat(plan, 1, 0) != flat(plan, 1, 1)
    assert flat(plan, 1, 0) != flat(plan, 2, 0)


def test_windows_and_batches_are_bounded(plan: EpochPlan) -> None:
    for batch in plan.batches(0, 0):
        ids, real, bag = collate(batch, plan.frame)
        assert ids.shape == real.shape
        assert ids.shape[1] <= BODY + 2
        assert ids.numel() <= BATCH_TOKENS or len(batch) == 1
        assert len(bag) == len(ids)
        assert set(bag.tolist()) == set(range(len(batch)))
        assert all(1 <= len(example.windows) <= MAX_BAG for example in batch)
        assert all(len(example.windows) == 1 for example in batch if example.label == 0)


def test_collate_frames_each_window(plan: EpochPlan) -> None:
    batch = plan.batches(0, 0)[0]
    ids, real, _ = collate(batch, plan.frame)
    windows = [window for example in batch for window in example.windows]
    for row, mask, window in zip(ids, real, windows, strict=True):
        assert row[mask].tolist() == [plan.frame[0], *window.tolist(), plan.frame[1]]


def test_splice_keeps_both_parts_whole() -> None:
    random = np.random.default_rng(0)
    host, inner = np.arange(20, dtype=np.int32), np.full(3, 99, np.int32)
    for breaks in ([], [4, 9]):
        spliced = augment.splice(inner, host, np.array(breaks, np.int32), random)
        assert spliced[spliced != 99].tolist() == host.tolist()
        at = int(np.flatnonzero(spliced == 99)[0])
        assert (spliced[at : at + 3] == 99).all()
        assert not breaks or at in (5, 10)


def test_crop_is_a_run_of_the_text() -> None:
    random = np.random.default_rng(0)
    ids = np.arange(30, dtype=np.int32)
    part = augment.crop(ids, 7, random)
    assert part.tolist() == list(range(part[0], part[0] + 7))
    assert augment.crop(ids, 30, random) is ids


def test_templates_fill() -> None:
    random = np.random.default_rng(0)
    for text in augment.benign_texts(random, 200) + augment.attack_texts(random, 200):
        assert text.strip()
        assert "{phrase}" not in text
        assert "{goal}" not in text
