"""Windows to tensors: which examples share a batch, and how they are padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vauban.detectors.windows import Ids
from vauban.training.mixture import Example


def torch_device(name: str) -> torch.device:
    """:param name: of a torch device; "auto" takes CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def collate(
    windows: Sequence[Ids], frame: tuple[int, int], multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """Pad to a multiple of tokens; put `frame`, the ids of [CLS] and [SEP], around each window.

    :return: ids (int64) and mask (bool), [windows, tokens].
    """
    longest = -(-(max(map(len, windows)) + 2) // multiple) * multiple
    ids = torch.zeros(len(windows), longest, dtype=torch.int64)
    real = torch.zeros(len(windows), longest, dtype=torch.bool)
    for row, window in enumerate(windows):
        ids[row, 0] = frame[0]
        ids[row, 1 : len(window) + 1] = torch.from_numpy(window)
        ids[row, len(window) + 1] = frame[1]
        real[row, : len(window) + 2] = True
    return ids, real


def batched(
    examples: Sequence[Example], batch_tokens: int, random: np.random.Generator
) -> list[list[Example]]:
    """Shuffled batches of examples of like length, at most `batch_tokens` padded tokens each."""
    noise = random.uniform(0.9, 1.1, len(examples))
    order = np.argsort([e.longest * n for e, n in zip(examples, noise, strict=True)])
    found: list[list[Example]] = []
    batch: list[Example] = []
    windows = longest = 0
    for i in order:
        example = examples[i]
        longest = max(longest, example.longest + 2)
        windows += len(example.windows)
        if batch and windows * longest > batch_tokens:
            found.append(batch)
            batch, windows, longest = [], len(example.windows), example.longest + 2
        batch.append(example)
    found.append(batch)
    return [found[i] for i in random.permutation(len(found))]
