"""The whole evaluation of the injection classifier: files and a policy in, `Report` out.

Scores are those of the code that serves: `OfflineScreen` reads (normaliser, windows), encodes and
judges. A row that could not be read whole is blocked there, so its score is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from vauban import __version__
from vauban.detectors import checkpoint
from vauban.errors import ConfigError
from vauban.offline import OfflineScreen, Request, as_user
from vauban.policy import Policy
from vauban.training.adaptive import Attack, AttackReport, run_attack
from vauban.training.adaptive_moves import ATTACKS
from vauban.training.evaluate import Floats
from vauban.training.labelled import labelled_rows, read_labels
from vauban.training.report import EncoderFacts, Report, Scored, file_report
from vauban.types import Mode, Reason

_T = TypeVar("_T")

BATCH_ROWS = 256
BATCH_CHARS = 2_000_000


class Track(Protocol):
    """Shows progress: of `total` units of `task`, `done` are made."""

    def __call__(self, task: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evaluate.

    `rows`: at most so many of each file, drawn at random; None = all. `attacks`: names of
    `ATTACKS`. `limit`: at most so many detections are attacked, drawn from all files.
    """

    files: Sequence[Path]
    rows: int | None = None
    attacks: Sequence[str] = ()
    limit: int = 100
    seed: int = 0


def as_evaluated(policy: Policy, *, weights: Path | None = None, raw: bool = False) -> Policy:
    """`policy` with the detector on; with other weights, or without the normaliser, if wanted."""
    encoder = policy.encoder.model_copy(update={"weights": weights} if weights else {})
    normalize = policy.normalize.model_copy(update={"mode": Mode.OFF} if raw else {})
    injection = policy.injection.model_copy(update={"mode": Mode.ENFORCE, "on_failure": "block"})
    return policy.model_copy(
        update={"encoder": encoder, "normalize": normalize, "injection": injection}
    )


def examine(policy: Policy, plan: Plan, track: Track) -> Report:
    """Score the files, attack some of the detections, and report.

    :param policy: as `as_evaluated` makes it.
    :raises ConfigError: a file is not as it should be, or all of them together have no attacks or
        no benign rows; found out before anything is scored.
    :raises WeightsError: the encoder can't be loaded.
    """
    drawn = _draw(plan)
    screen = OfflineScreen(policy)
    scored = {path: _score_file(screen, path, rows, track) for path, rows in drawn.items()}
    report = partial(file_report, block_at=screen.block_at, flag_at=screen.flag_at, seed=plan.seed)
    return Report(
        encoder=_facts(policy, screen),
        seed=plan.seed,
        files=tuple(report(str(p), rows) for p, rows in scored.items()),
        all=report("all", Scored.joined(scored.values())),
        attacks=tuple(_attack(policy, screen, plan, drawn, scored, track)) if plan.attacks else (),
    )


def score_requests(screen: OfflineScreen, requests: Sequence[Request]) -> Floats:
    """One score per request, in order, in batches of bounded size."""
    sized = [(request, sum(len(segment.text) for segment in request)) for request in requests]
    batches = _batches(sized, lambda pair: pair[1])
    verdicts = (screen([request for request, _ in batch]) for batch in batches)
    return np.array([v.score for batch in verdicts for v in batch], np.float64)


def _draw(plan: Plan) -> dict[Path, Sequence[int]]:
    """The numbers of the rows to score, ascending, by file."""
    drawn: dict[Path, Sequence[int]] = {}
    found: set[int] = set()
    for number, path in enumerate(dict.fromkeys(plan.files)):
        labels = read_labels(path)
        rows: Sequence[int] = range(len(labels))
        if plan.rows is not None and plan.rows < len(labels):
            order = np.random.default_rng([plan.seed, number]).permutation(len(labels))
            rows = sorted(map(int, order[: plan.rows]))
        drawn[path] = rows
        found.update(labels[row] for row in rows)
    for label, name in ((1, "attacks (label 1)"), (0, "benign rows (label 0)")):
        if label not in found:
            raise ConfigError(f"no {name} in {', '.join(map(str, drawn))}: both are needed")
    return drawn


def _batches(items: Iterable[_T], chars: Callable[[_T], int]) -> Iterator[list[_T]]:
    batch: list[_T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += chars(item)
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _score_file(screen: OfflineScreen, path: Path, rows: Sequence[int], track: Track) -> Scored:
    scored = Scored()
    wanted = _lookup(rows)
    for batch in _batches(labelled_rows(path, wanted), lambda row: len(row.text)):
        for row, verdict in zip(batch, screen([as_user(row.text) for row in batch]), strict=True):
            scored.add(row, verdict.score)
            scored.unread += verdict.reason is Reason.UNREAD_TEXT
            scored.failed += verdict.reason is Reason.SCREEN_FAILED
        track(path.name, len(scored.scores), len(rows))
    return scored


def _lookup(rows: Sequence[int]) -> Callable[[int], bool]:
    return (rows if isinstance(rows, range) else frozenset(rows)).__contains__


def _facts(policy: Policy, screen: OfflineScreen) -> EncoderFacts:
    config = checkpoint.read_config(policy.encoder.weights or checkpoint.shipped())
    return EncoderFacts(
        version=__version__,
        weights_sha256=config.weights_sha256,
        policy_digest=policy.digest,
        normalised=policy.normalize.mode is not Mode.OFF,
        block_at=screen.block_at,
        flag_at=screen.flag_at,
    )


# --- attacks ---------------------------------------------------------------------------------


def _detected_texts(
    drawn: Mapping[Path, Sequence[int]],
    scored: Mapping[Path, Scored],
    threshold: float,
    plan: Plan,
) -> list[str]:
    """Texts of at most `plan.limit` detected attacks, drawn from all files."""
    places = [
        (path, rows[i])
        for path, rows in drawn.items()
        for i, (label, score) in enumerate(
            zip(scored[path].labels, scored[path].scores, strict=True)
        )
        if label == 1 and score >= threshold
    ]
    order = np.random.default_rng(plan.seed).permutation(len(places))[: plan.limit]
    chosen = [places[i] for i in order]
    texts = []
    for path in drawn:
        rows = frozenset(row for file, row in chosen if file == path)
        texts += [row.text for row in labelled_rows(path, rows.__contains__)] if rows else []
    return texts


def _attack(
    policy: Policy,
    screen: OfflineScreen,
    plan: Plan,
    drawn: Mapping[Path, Sequence[int]],
    scored: Mapping[Path, Scored],
    track: Track,
) -> Iterator[AttackReport]:
    normalised = policy.normalize.mode is not Mode.OFF
    texts = {normalised: _detected_texts(drawn, scored, screen.block_at, plan)}
    screens = {normalised: screen}
    for attack in _variants(plan.attacks, normalised=normalised):
        if attack.normalised not in screens:  # the comparison without the normaliser
            bare = screens[False] = OfflineScreen(as_evaluated(policy, raw=True))
            scores = score_requests(bare, [as_user(text) for text in texts[True]])
            over = scores >= bare.block_at
            texts[False] = [text for text, hit in zip(texts[True], over, strict=True) if hit]
        mine, used = texts[attack.normalised], screens[attack.normalised]
        title = f"{attack.name}: {attack.variant}{'' if attack.normalised else ' (raw)'}"
        yield run_attack(
            attack,
            mine,
            partial(score_requests, used),
            threshold=used.block_at,
            seed=plan.seed,
            track=partial(track, title, total=len(mine)),
        )


def _variants(names: Iterable[str], *, normalised: bool) -> Iterator[Attack]:
    """Without a normaliser in front there is nothing to compare with."""
    for name in dict.fromkeys(names):
        for attack in ATTACKS[name]:
            if normalised:
                yield attack
            elif attack.normalised:
                yield replace(attack, normalised=False)
