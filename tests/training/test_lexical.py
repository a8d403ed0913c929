"""The fitted table works in the model that serves, and separates what it was fitted on."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from vauban.detectors.bert import LexicalHead, lexical_buckets
from vauban.training.lexical import BUCKETS, buckets, fit_lexical, logistic_weights

FRAME = (101, 102)


def windows(count: int) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(0)
    made = []
    for i in range(count):
        ids = random.integers(1000, 1100, int(random.integers(3, 40))).astype(np.int32)
        if i % 2:
            ids[1:3] = (5000, 5001)
        made.append((ids, i % 2))
    return made


def test_training_and_serving_hash_alike() -> None:
    ids = np.arange(2000, 2020, dtype=np.int32)
    framed = torch.tensor([[FRAME[0], *ids.tolist(), FRAME[1]]])
    single, pair = lexical_buckets(framed, BUCKETS)
    assert buckets(ids, FRAME).tolist() == [*single[0].tolist(), *pair[0].tolist()]


def test_the_table_separates_in_the_head_that_serves() -> None:
    made = windows(200)
    head = LexicalHead(BUCKETS)
    head.table = torch.nn.Parameter(torch.from_numpy(fit_lexical(made, FRAME)))
    longest = max(len(ids) for ids, _ in made) + 2
    padded = torch.zeros(len(made), longest, dtype=torch.int64)
    real = torch.zeros(len(made), longest, dtype=torch.bool)
    alone = []
    for row, (ids, _) in enumerate(made):
        framed = torch.tensor([FRAME[0], *ids.tolist(), FRAME[1]])
        padded[row, : len(framed)] = framed
        real[row, : len(framed)] = True
        alone.append(head(framed[None], None).item())
    logits = head(padded, real).detach().numpy()
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)  # batch = single
    labels = np.array([label for _, label in made])
    assert logits[labels == 1].min() > logits[labels == 0].max()


def test_the_regression_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    features = random.normal(size=(300, 12)).astype(np.float32) * (random.random((300, 12)) < 0.4)
    labels = (features @ random.normal(size=12) + random.normal(size=300) > 0.8).astype(np.float32)
    theirs = LogisticRegression(C=3.0, class_weight="balanced", max_iter=500).fit(features, labels)
    ours = logistic_weights(csr_matrix(features), labels)
    np.testing.assert_allclose(ours, theirs.coef_[0], atol=2e-3)
