"""Excerpts of a window: what is added to an attack, to calm it, is left out again.

The score is the worst excerpt's: the idea of erase-and-check (arXiv 2309.02705), with few
subsequences instead of all. One of them is chosen by the lexical head, whose logit of every part
costs no pass of the network.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vauban.detectors.bert import lexical_buckets
from vauban.detectors.windows import Ids

FROM_START, FROM_END = (2, 4, 8, 12, 16), (4, 8)  # tokens left out
MIN_TOKENS = 8
SHORT_TOKENS = 83  # of windows of 128, the short ones are whole texts: cut ones have 84 and more

Table = NDArray[np.float32]


def excerpts(window: Ids, lexical: Table | None) -> list[Ids]:
    """A window without its first half, and without its last; if short, other parts of it too.

    Those are the ones without a few tokens of the start or the end, at most a third of them, and
    the half or more with the highest logit of the lexical head. In a text of a dozen words that
    half is too little to judge by ("write a poem about volcanoes" begins many a riddle).

    :param window: with one special token at each end, which every excerpt has too.
    :param lexical: weights of `bert.LexicalHead`; None when the model has none.
    """
    count = len(window) - 2
    if count < MIN_TOKENS:
        return []
    half = count // 2
    cuts = [(0, count - half), (half, count)]
    if count <= SHORT_TOKENS:
        cuts += [(left_out, count) for left_out in FROM_START if 3 * left_out <= count]
        cuts += [(0, count - left_out) for left_out in FROM_END if 3 * left_out <= count]
        if lexical is not None and half >= MIN_TOKENS:
            cuts.append(strongest_part(window, lexical.ravel(), half))
    return [np.concatenate([window[:1], window[1 + a : 1 + b], window[-1:]]) for a, b in cuts]


def strongest_part(window: Ids, weights: Table, min_tokens: int) -> tuple[int, int]:
    """Start and end of the part whose excerpt has the highest logit of the lexical head.

    :param window: with its two special tokens, which are not counted in the answer.
    :param weights: one per bucket.
    """
    ids = torch.from_numpy(window.astype(np.int64))
    count = len(ids) - 2
    single, pair = (
        weights[found[0].numpy()].astype(np.float64)
        for found in lexical_buckets(ids[None], len(weights))
    )
    body = ids[1:-1]
    starts = torch.stack([ids[:1].expand(count), body], dim=1)
    ends = torch.stack([body, ids[-1:].expand(count)], dim=1)
    opening, closing = (
        weights[lexical_buckets(pairs, len(weights))[1][:, 0].numpy()] for pairs in (starts, ends)
    )
    before = np.concatenate([[0.0], np.cumsum(single[1:-1])])
    pairs_before = np.concatenate([[0.0], np.cumsum(pair[1:-1])])
    start, end = np.arange(count)[:, None], np.arange(1, count + 1)[None, :]
    total = single[0] + single[-1] + before[end] - before[start]
    total = total + pairs_before[end - 1] - pairs_before[start] + opening[start] + closing[end - 1]
    size = end - start
    logits = total / np.sqrt(np.maximum(2 * (size + 2) - 1, 1))
    best = int(np.where(size >= max(min_tokens, 1), logits, -np.inf).argmax())
    return best // count, best % count + 1
