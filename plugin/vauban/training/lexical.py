"""Fitting the lexical head: logistic regression on hashed tokens and token pairs.

Convex, quick, and independent of the deep head, which is why the two together find more than
either. Features are weighted by inverse document frequency during the fit, so that common words
are held back by the regulariser; the weight is folded into the table that ships.

A linear model invites the good-word attack (Lowd & Meek, CEAS 2005): words that speak most for
harmlessness, added to an attack. So it is fitted twice, the second time with the calmest words of
the first added to half of the attacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from vauban.detectors.checkpoint import LEXICAL_ROW
from vauban.detectors.windows import Ids

BUCKETS = 1 << 20
_STRENGTH = 3.0  # inverse of the L2 penalty
_FEATURE_SCALE = 1 / 6  # brings a window's features to about unit length
_CALM_WORDS, _MOST_ADDED = 300, 6
_MAX_STEPS = 200


def fit_lexical(
    windows: Iterable[tuple[Ids, int]],
    frame: tuple[int, int],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """The table of `bert.LexicalHead`.

    :param windows: ids of one window without special tokens, and its label.
    :return: float32 [BUCKETS / LEXICAL_ROW, LEXICAL_ROW]
    """
    shown = list(windows)
    table = _fit(shown, frame, device)
    random = np.random.default_rng(seed)
    calm = _calmest(table, [ids for ids, _ in shown])
    soothed = [(_soothed(ids, label, calm, random), label) for ids, label in shown]
    return _fit(soothed, frame, device)


def _fit(
    windows: Sequence[tuple[Ids, int]], frame: tuple[int, int], device: torch.device | str
) -> NDArray[np.float32]:
    indices = [buckets(ids, frame) for ids, _ in windows]
    lengths = np.array([len(row) for row in indices])
    weight = np.repeat(_FEATURE_SCALE / np.sqrt(lengths), lengths).astype(np.float32)
    counts = csr_matrix(
        (weight, np.concatenate(indices), np.concatenate([[0], np.cumsum(lengths)])),
        shape=(len(lengths), BUCKETS),
    )
    counts.sum_duplicates()
    seen = np.bincount(counts.indices, minlength=BUCKETS)
    used = np.flatnonzero(seen >= 2)  # in one window only: can't carry over to others
    rarity = np.log((1 + len(lengths)) / (1 + seen[used])) + 1
    features = counts[:, used].multiply(rarity[None, :].astype(np.float32)).tocsr()
    labels = np.array([label for _, label in windows], np.float32)
    table = np.zeros(BUCKETS, np.float32)
    table[used] = logistic_weights(features, labels, device) * rarity * _FEATURE_SCALE
    return table.reshape(-1, LEXICAL_ROW)


def logistic_weights(
    features: csr_matrix, labels: NDArray[np.float32], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Weights of a balanced logistic regression with an L2 penalty and a free intercept (L-BFGS).

    :param features: [n, d]; :param labels: 0 or 1, [n].
    :return: float32 [d]; the intercept is left out: calibration sets it.
    """
    matrix, transposed = (_sparse(m, device) for m in (features, features.T.tocsr()))
    share = float(labels.mean())
    balance = np.where(labels == 1, 0.5 / max(share, 1e-9), 0.5 / max(1 - share, 1e-9))
    cost = torch.from_numpy((_STRENGTH * balance).astype(np.float32)).to(device)
    target = torch.from_numpy(labels).to(device)
    weights = torch.zeros(features.shape[1] + 1, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=_MAX_STEPS,
        tolerance_grad=1e-3,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        w = weights.detach()
        logits = (matrix @ w[:-1, None])[:, 0] + w[-1]
        wrong = cost * (logits.sigmoid() - target)
        weights.grad = torch.cat([w[:-1] + (transposed @ wrong[:, None])[:, 0], wrong.sum()[None]])
        loss = cost * torch.nn.functional.softplus(torch.where(target > 0, -logits, logits))
        return float(0.5 * (w[:-1] @ w[:-1]) + loss.sum())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found: NDArray[np.float32] = weights.detach()[:-1].cpu().numpy()
    return found


def _sparse(matrix: csr_matrix, device: torch.device | str) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # "beta" since torch 1.13
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            matrix.shape,
        ).to(device)


def _calmest(table: NDArray[np.float32], windows: Sequence[Ids]) -> Ids:
    """Of the tokens seen, those with the lowest weights by themselves."""
    tokens = np.unique(np.concatenate(windows))
    order = np.argsort(table.ravel()[_singles(tokens)], kind="stable")
    return tokens[order[:_CALM_WORDS]]


def _soothed(ids: Ids, label: int, calm: Ids, random: np.random.Generator) -> Ids:
    """An attack, every second time, with one to six calm words before or after."""
    if not label or random.random() < 0.5:
        return ids
    added = random.choice(calm, int(random.integers(1, _MOST_ADDED + 1)))
    return np.concatenate([ids, added] if random.random() < 0.75 else [added, ids])


def _singles(ids: Ids) -> NDArray[np.int64]:
    return (ids.astype(np.int64) * 40_503 + 11) % BUCKETS


def buckets(ids: Ids, frame: tuple[int, int]) -> NDArray[np.int64]:
    """As `bert.lexical_buckets`, for one window: all its tokens, then all its pairs."""
    framed = np.concatenate([frame[:1], ids, frame[1:]]).astype(np.int32)
    wide = framed.astype(np.int64)
    pair = (wide[:-1] * 1_000_003 + wide[1:] * 7_919) % BUCKETS
    return np.concatenate([_singles(framed), pair])
