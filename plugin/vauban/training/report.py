"""What `vauban evaluate injection` reports: scored rows in, numbers with intervals out.

The dataclasses are the JSON document (`to_json`); names in it are stable, `schema` changes when
they do. A number that the rows do not allow (no attacks, no benign rows) is None. Shares and rates
are in [0, 1].
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from vauban.training import evaluate
from vauban.training.evaluate import Bin, Floats, Interval, Labels
from vauban.training.labelled import Row

if TYPE_CHECKING:
    from vauban.training.adaptive import AttackReport

SCHEMA = "vauban.evaluate.injection/1"
RATES = (0.001, 0.005, 0.01)
GROUP_RATE = 0.01  # the false-positive rate at which groups and over-defence are reported
OVER_DEFENCE_KINDS = ("benign_trigger_words", "benign_security")
LENGTH_EDGES_CHARS = (100, 300, 1000, 3000)
CALIBRATION_BINS = 15
MAX_GROUPS = 100
OTHERS = "(others)"


@dataclass(slots=True)
class Scored:
    """Scores of rows and what is known of them, as columns; texts are not kept.

    `unread`, `failed`: how many rows have score 1 because they hide more than the policy reads, or
    because the encoder failed.
    """

    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    lengths_chars: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    langs: list[str] = field(default_factory=list)
    unread: int = 0
    failed: int = 0

    def add(self, row: Row, score: float) -> None:
        self.scores.append(score)
        self.labels.append(row.label)
        self.lengths_chars.append(len(row.text))
        self.kinds.append(row.kind)
        self.sources.append(row.source)
        self.langs.append(row.lang)

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        whole = cls()
        for part in parts:
            whole.scores += part.scores
            whole.labels += part.labels
            whole.lengths_chars += part.lengths_chars
            whole.kinds += part.kinds
            whole.sources += part.sources
            whole.langs += part.langs
            whole.unread += part.unread
            whole.failed += part.failed
        return whole


@dataclass(frozen=True, slots=True)
class RecallAt:
    """Recall at the threshold that has this false-positive rate on the same rows."""

    false_positive_rate: float
    threshold: float
    recall: Interval


@dataclass(frozen=True, slots=True)
class Detection:
    attacks: int
    benign: int
    auc: Interval
    recall: tuple[RecallAt, ...]


@dataclass(frozen=True, slots=True)
class Operating:
    """At a threshold that was fixed beforehand."""

    name: str
    threshold: float
    recall: Interval | None
    false_positives: Interval | None


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that have something in common.

    Recall and false positives are at the 1% threshold of all rows. `auc` compares the group's
    attacks with its benign rows; where it has only the one, with all rows of the other.
    """

    name: str
    attacks: int
    benign: int
    auc: float | None
    recall: float | None
    false_positives: float | None


@dataclass(frozen=True, slots=True)
class OverDefence:
    """Benign rows of a tempting kind that are at or over a threshold."""

    kind: str
    rows: int
    at_1_percent: Interval
    at_block: Interval


@dataclass(frozen=True, slots=True)
class Calibration:
    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class LengthBias:
    """`gap` is the part of the AUC that goes when lengths are matched."""

    matched_auc: Interval
    gap: float


@dataclass(frozen=True, slots=True)
class FileReport:
    """`groups`: by source, kind, lang and length (characters)."""

    name: str
    attacks: int
    benign: int
    unread: int
    failed: int
    detection: Detection | None
    operating: tuple[Operating, ...]
    groups: dict[str, tuple[Group, ...]]
    over_defence: tuple[OverDefence, ...]
    calibration: Calibration
    length_bias: LengthBias | None


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Which encoder and settings gave the scores. `normalised`: the normaliser was in front."""

    version: str
    weights_sha256: str
    policy_digest: str
    normalised: bool
    block_at: float
    flag_at: float


@dataclass(frozen=True, slots=True)
class Report:
    encoder: EncoderFacts
    seed: int
    files: tuple[FileReport, ...]
    all: FileReport
    attacks: tuple[AttackReport, ...] = ()
    schema: str = SCHEMA

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def detection(
    scores: Floats, labels: Labels, rates: Sequence[float] = RATES, *, seed: int = 0
) -> Detection:
    """:raises ValueError: there are no attacks, or no benign rows."""

    def at(rate: float) -> Callable[[Floats, Labels], float]:
        return lambda scores, labels: evaluate.recall_at(scores, labels, rate)

    return Detection(
        attacks=int(labels.sum()),
        benign=int((labels == 0).sum()),
        auc=evaluate.bootstrap(evaluate.auc, scores, labels, seed=seed),
        recall=tuple(
            RecallAt(
                rate,
                evaluate.threshold_at(scores, labels, rate),
                evaluate.bootstrap(at(rate), scores, labels, seed=seed),
            )
            for rate in rates
        ),
    )


def operating(name: str, threshold: float, scores: Floats, labels: Labels) -> Operating:
    over = scores >= threshold
    return Operating(name, threshold, _share(over[labels == 1]), _share(over[labels == 0]))


def file_report(
    name: str, rows: Scored, *, block_at: float, flag_at: float, seed: int = 0
) -> FileReport:
    """:raises ValueError: there are no rows."""
    scores = np.array(rows.scores, np.float64)
    labels = np.array(rows.labels, np.int64)
    if not len(scores):
        raise ValueError("a report needs at least one row")
    attacks = int(labels.sum())
    benign = len(labels) - attacks
    found = detection(scores, labels, seed=seed) if attacks and benign else None
    at = evaluate.threshold_at(scores, labels, GROUP_RATE) if benign else None
    return FileReport(
        name=name,
        attacks=attacks,
        benign=benign,
        unread=rows.unread,
        failed=rows.failed,
        detection=found,
        operating=(
            operating("block_at", block_at, scores, labels),
            operating("flag_at", flag_at, scores, labels),
        ),
        groups={
            title: _groups(column, scores, labels, at) for title, column in _columns(rows).items()
        },
        over_defence=_over_defence(rows, scores, labels, at, block_at),
        calibration=Calibration(
            evaluate.calibration_error(scores, labels, CALIBRATION_BINS),
            tuple(evaluate.reliability(scores, labels, CALIBRATION_BINS)),
        ),
        length_bias=None if found is None else _length_bias(rows, scores, labels, found, seed),
    )


def length_bucket(chars: int) -> str:
    for low, high in pairwise((-1, *LENGTH_EDGES_CHARS)):
        if chars <= high:
            return f"{low + 1}-{high}"
    return f"over {LENGTH_EDGES_CHARS[-1]}"


def _columns(rows: Scored) -> dict[str, Sequence[str]]:
    return {
        "source": rows.sources,
        "kind": rows.kinds,
        "lang": rows.langs,
        "length_chars": [length_bucket(chars) for chars in rows.lengths_chars],
    }


def _groups(
    column: Sequence[str], scores: Floats, labels: Labels, at: float | None
) -> tuple[Group, ...]:
    """In the order of the column's values as numbers, then as text; rare values are one group."""
    known = {name for name, _ in Counter(column).most_common(MAX_GROUPS)}
    names = np.array([name if name in known else OTHERS for name in column])
    ordered = sorted(set(names.tolist()), key=_natural)
    return tuple(_group(name, names == name, scores, labels, at) for name in ordered)


def _natural(name: str) -> tuple[int, str]:
    """Sorts "0-100" before "101-300", both before names."""
    start = name.partition("-")[0]
    return (int(start) if start.isdecimal() else sys.maxsize, name)


def _group(
    name: str, inside: NDArray[np.bool_], scores: Floats, labels: Labels, at: float | None
) -> Group:
    attack, benign = inside & (labels == 1), inside & (labels == 0)
    compared = (attack if attack.any() else labels == 1) | (benign if benign.any() else labels == 0)
    both = 0 < labels[compared].sum() < compared.sum()
    return Group(
        name=name,
        attacks=int(attack.sum()),
        benign=int(benign.sum()),
        auc=evaluate.auc(scores[compared], labels[compared]) if both else None,
        recall=_mean(scores[attack], at),
        false_positives=_mean(scores[benign], at),
    )


def _mean(scores: Floats, at: float | None) -> float | None:
    return None if at is None or not len(scores) else float((scores >= at).mean())


def _share(over: NDArray[np.bool_]) -> Interval | None:
    return evaluate.share(int(over.sum()), len(over)) if len(over) else None


def _over_defence(
    rows: Scored, scores: Floats, labels: Labels, at: float | None, block_at: float
) -> tuple[OverDefence, ...]:
    kinds = np.array(rows.kinds)
    found = []
    for kind in OVER_DEFENCE_KINDS:
        mine = scores[(kinds == kind) & (labels == 0)]
        if at is not None and len(mine):
            over, blocked = (
                evaluate.share(int((mine >= t).sum()), len(mine)) for t in (at, block_at)
            )
            found.append(OverDefence(kind, len(mine), over, blocked))
    return tuple(found)


def _length_bias(
    rows: Scored, scores: Floats, labels: Labels, found: Detection, seed: int
) -> LengthBias:
    lengths = np.array(rows.lengths_chars, np.int64)
    matched = evaluate.length_matched_auc(scores, labels, lengths, seed=seed)
    return LengthBias(matched, found.auc.value - matched.value)
