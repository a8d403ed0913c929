"""The report against hand-made scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vauban.training import report
from vauban.training.labelled import Row
from vauban.training.report import EncoderFacts, Report, Scored, file_report

FACTS = EncoderFacts("0", "a" * 64, "b" * 12, True, 0.6, 0.5)


def scored(rows: list[tuple[float, int, str, int]]) -> Scored:
    """Rows of (score, label, kind, characters)."""
    columns = Scored()
    for score, label, kind, chars in rows:
        columns.add(Row("x" * chars, label, kind, "a/b", "en"), score)
    return columns


def random_rows(count: int, seed: int = 0) -> list[tuple[float, int, str, int]]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.random() < 0.3)
        kind = "jailbreak" if label else str(random.choice(report.OVER_DEFENCE_KINDS))
        score = float(np.clip(random.normal(0.3 + 0.4 * label, 0.15), 0, 1))
        rows.append((score, label, kind, int(random.integers(1, 5000))))
    return rows


def test_numbers_are_those_of_scikit_learn_and_of_counting() -> None:
    rows = random_rows(600)
    found = file_report("f", scored(rows), block_at=0.6, flag_at=0.5)
    scores, labels = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    assert found.detection is not None
    assert found.detection.auc.value == pytest.approx(roc_auc_score(labels, scores))
    assert [at.false_positive_rate for at in found.detection.recall] == [0.001, 0.005, 0.01]
    for at in found.detection.recall:
        assert (scores[labels == 0] >= at.threshold).mean() <= at.false_positive_rate
        assert at.recall.value == (scores[labels == 1] >= at.threshold).mean()
        assert at.recall.low <= at.recall.value <= at.recall.high
    block, flag = found.operating
    assert block.recall is not None
    assert block.false_positives is not None
    assert block.recall.value == (scores[labels == 1] >= 0.6).mean()
    assert block.false_positives.value == (scores[labels == 0] >= 0.6).mean()
    assert (block.name, flag.name, flag.threshold) == ("block_at", "flag_at", 0.5)


def test_groups_add_up() -> None:
    found = file_report("f", scored(random_rows(400)), block_at=0.6, flag_at=0.5)
    assert set(found.groups) == {"source", "kind", "lang", "length_chars"}
    for groups in found.groups.values():
        assert sum(group.attacks for group in groups) == found.attacks
        assert sum(group.benign for group in groups) == found.benign
    kinds = {group.name: group for group in found.groups["kind"]}
    assert kinds["jailbreak"].false_positives is None
    assert found.detection is not None
    assert kinds["jailbreak"].auc == pytest.approx(found.detection.auc.value)
    assert kinds["benign_security"].recall is None
    assert found.groups["source"][0].recall == found.detection.recall[2].recall.value


def test_length_buckets_are_in_order() -> None:
    rows = [(0.1 * n, n % 2, "k", chars) for n, chars in enumerate([5000, 0, 101, 100, 3000])]
    found = file_report("f", scored(rows), block_at=0.6, flag_at=0.5)
    names = [group.name for group in found.groups["length_chars"]]
    assert names == ["0-100", "101-300", "1001-3000", "over 3000"]


def test_rare_values_are_one_group() -> None:
    rows = [(0.5, n % 2, f"kind {n % 300}", 10) for n in range(450)]
    groups = file_report("f", scored(rows), block_at=0.6, flag_at=0.5).groups["kind"]
    assert len(groups) == report.MAX_GROUPS + 1
    assert sum(group.attacks + group.benign for group in groups) == 450
    assert report.OTHERS in {group.name for group in groups}


def test_over_defence_counts_benign_rows_only() -> None:
    rows = [(0.01 * n, 0, "benign_chat", 10) for n in range(98)]
    rows += [(0.99, 0, "benign_trigger_words", 10), (0.2, 0, "benign_trigger_words", 10)]
    rows += [(0.995, 1, "benign_trigger_words", 10), (0.8, 1, "jailbreak", 10)]
    (found,) = file_report("f", scored(rows), block_at=0.1, flag_at=0.1).over_defence
    assert (found.kind, found.rows) == ("benign_trigger_words", 2)
    assert (found.at_1_percent.value, found.at_block.value) == (0.5, 1.0)


@pytest.mark.parametrize("label", [0, 1])
def test_a_file_of_one_class_has_what_it_allows(label: int) -> None:
    found = file_report("f", scored([(0.7, label, "k", 10)] * 3), block_at=0.6, flag_at=0.5)
    assert found.detection is None
    assert found.length_bias is None
    block = found.operating[0]
    assert (block.recall is None) is (label == 0)
    assert (block.false_positives is None) is (label == 1)
    json.loads(Report(FACTS, 0, (found,), found).to_json())


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        file_report("f", Scored(), block_at=0.6, flag_at=0.5)


def test_the_document_keeps_its_names() -> None:
    """Whoever reads the JSON relies on these; a change needs a new `schema`."""
    one = file_report("f", scored(random_rows(50)), block_at=0.6, flag_at=0.5)
    document = json.loads(Report(FACTS, 0, (one,), one).to_json())
    assert document["schema"] == "vauban.evaluate.injection/1"
    assert set(document) == {"schema", "encoder", "seed", "files", "all", "attacks"}
    assert set(document["files"][0]) == {
        "name", "attacks", "benign", "unread", "failed", "detection", "operating", "groups",
        "over_defence", "calibration", "length_bias",
    }  # fmt: skip
    assert set(document["files"][0]["detection"]["recall"][0]) == {
        "false_positive_rate", "threshold", "recall",
    }  # fmt: skip


def test_joined_columns_are_the_rows_of_both() -> None:
    one, two = scored(random_rows(20)), scored(random_rows(30, seed=1))
    one.unread, two.failed = 2, 3
    both = Scored.joined([one, two])
    assert both.scores == one.scores + two.scores
    assert (len(both.langs), both.unread, both.failed) == (50, 2, 3)
