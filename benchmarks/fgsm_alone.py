"""What FGSM in training alone buys the injection classifier against attacks made of words.

Two fine-tunes from the shipped weights, with the same texts in the same batches, the same hidden
words, steps and rates. One of them also learns in every step under the worst small shift of the
hidden states (`FitConfig.adversarial_after`), and that is all the difference: both keep the shipped
lexical head and calibration. The baselines are the other run and the shipped weights; each model
has its own threshold, at 1% false positives on the texts of `dev_ood` under 300 characters. Some
attacks among them that all three detect are attacked: by words, as `vauban evaluate injection
--attack` does it, and from inside, by FGSM and PGD on the states that one of the runs was trained
to stand shifts of.

python -m benchmarks.fgsm_alone --data DIR --out DIR [--texts N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vauban.commands.progress import tracking
from vauban.detectors.bert import EncoderModel
from vauban.detectors.checkpoint import (
    LEXICAL_NAME,
    WEIGHTS_NAME,
    read_config,
    read_tensors,
    shipped,
    write_checkpoint,
)
from vauban.detectors.windows import Ids, WindowTokenizer, spans
from vauban.offline import OfflineScreen, as_user
from vauban.policy import EncoderPolicy, Policy
from vauban.training import evaluate
from vauban.training.adaptive import Attack, AttackReport, run_attack
from vauban.training.adaptive_moves import ATTACKS
from vauban.training.attacks import fgsm, pgd
from vauban.training.base import Start, load_start
from vauban.training.batches import collate
from vauban.training.evaluate import Floats, Interval, Labels
from vauban.training.examine import as_evaluated, score_requests
from vauban.training.finish import Track
from vauban.training.fit import FitConfig, Trainer
from vauban.training.labelled import Row, labelled_rows
from vauban.training.lexicon import Lexicon
from vauban.training.mixture import Mixture
from vauban.training.provenance import run_facts
from vauban.training.reader import Reader
from vauban.training.run import DEV_OOD, TRAIN, data_files, without_lexical

ARMS: Mapping[str, float | None] = {"shipped": None, "plain": 1.0, "fgsm": 0.0}
"""By name: the share of the run after which FGSM is on; 1: never, None: not trained."""
RATE = 0.01
MOST_CHARS = 300
SAMPLE_SEED = 11
LENGTHS = (0.05, 0.1, 0.3)
"""Of the shifts, in mean lengths of a token's hidden state; the last is that of the training."""
PGD_STEPS = 10
SCORED_AT_ONCE = 256
INSIDE = "inside"
WORDS = ("synonyms", "typos", "append")
AFTER = "words after"


@dataclass(frozen=True, slots=True)
class Clean:
    """On the short texts; `threshold` has 1% false positives there."""

    threshold: float
    auc: Interval
    recall: Interval
    recall_low: Interval  # at 0.1%


@dataclass(frozen=True, slots=True)
class Shift:
    """Of `detections` whole windows so many fall below the threshold when shifted by `length`."""

    attack: str
    length: float
    detections: int
    flipped: Interval


# --- the runs --------------------------------------------------------------------------------


def fit(start: Start, rows: Sequence[Row], config: FitConfig, out: Path, track: Track) -> None:
    """Fine-tune the deep head and the upper layers; the rest of `out` is as shipped."""
    template = read_config(shipped())
    lexical = read_tensors(shipped(), template)[LEXICAL_NAME]
    reader = Reader(WindowTokenizer.load(EncoderPolicy()))
    lexicon = Lexicon.fit(
        (ids, row.label) for row in rows for ids in reader.labelled(row.text, row.label)
    )
    body = config.window_tokens - 2
    mixture = Mixture(rows, reader, lexicon, body=body, overlap=config.overlap_tokens)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, mixture, reader.frame, start, out / "state.safetensors")
    trainer.fit(lambda p: track(out.name, p.pool, p.pools, f"loss {p.loss:.4f}"))
    tensors = {**trainer.tensors(), LEXICAL_NAME: lexical}
    settings = template.model_dump(exclude={"weights_sha256", "tokenizer_sha256"})
    write_checkpoint(out, tensors, start.tokenizer, settings)


def settings(texts: int, seed: int, after: float) -> FitConfig:
    """`hard_after`: a run that chose its own examples would not see those of the other."""
    return FitConfig(examples=texts, seed=seed, hard_after=1.0, adversarial_after=after)


# --- what they do ----------------------------------------------------------------------------


def clean(scores: Floats, labels: Labels) -> Clean:
    return Clean(
        evaluate.threshold_at(scores, labels, RATE),
        evaluate.bootstrap(evaluate.auc, scores, labels),
        evaluate.bootstrap(partial(evaluate.recall_at, rate=RATE), scores, labels),
        evaluate.bootstrap(partial(evaluate.recall_at, rate=0.001), scores, labels),
    )


def attacks(names: Collection[str]) -> Iterator[Attack]:
    """Of those that add text only the published one: words after the attack."""
    for name in WORDS:
        if name in names:
            yield from (one for one in ATTACKS[name] if name != "append" or one.variant == AFTER)


def from_inside(
    model: EncoderModel, windows: Sequence[Ids], frame: tuple[int, int], below: int, at: float
) -> list[Shift]:
    """White-box shifts of the hidden states after `below` layers, against both heads.

    :param windows: without special tokens, all of them attacks.
    :param at: threshold of the logit; windows below it are left out.
    """
    with torch.no_grad():
        ids, real = collate(windows, frame)
        keep = model(ids, real)[0] >= at
        ids, real = ids[keep], real[keep]
        x = model.embed_tokens(ids)
        for layer in model.layers[:below]:
            x = layer(x, real[:, None, None, :])
        lexical = 0.0 if model.lexical is None else model.lexical(ids, real)
        mean = (x.norm(dim=-1) * real).sum(dim=1) / real.sum(dim=1)

    def forward(states: Tensor) -> Tensor:
        for layer in model.layers[below:]:
            states = layer(states, real[:, None, None, :])
        logits: Tensor = model.head(states, real) + lexical
        return logits

    found = []
    for length in LENGTHS:
        for name, attack in (("FGSM", fgsm), (f"PGD, {PGD_STEPS} steps", _pgd)):
            moved = attack(
                model, x, torch.ones(len(x)), length * mean, norm="l2", mask=real, loss=_loss,
                forward=forward,
            )  # fmt: skip
            with torch.no_grad():
                flipped = int((forward(moved) < at).sum())
            found.append(Shift(name, length, len(x), evaluate.share(flipped, len(x))))
    return found


_loss = partial(F.binary_cross_entropy_with_logits, reduction="none")
_pgd: Callable[..., Tensor] = partial(pgd, steps=PGD_STEPS, random_start=False)


def worst_windows(
    model: EncoderModel, texts: Sequence[str], reader: Reader, window: int, overlap: int
) -> list[Ids]:
    """Of each text the window with the highest logit."""
    worst = []
    for text in texts:
        cut = [ids[a:b] for ids in reader(text) for a, b in spans(len(ids), window - 2, overlap)]
        ids, real = collate(cut, reader.frame)
        with torch.inference_mode():
            worst.append(cut[int(model(ids, real)[0].argmax())])
    return worst


def chosen(
    rows: Sequence[Row], scores: Mapping[str, Floats], found: Mapping[str, Clean], most: int
) -> list[str]:
    """At most `most` attacks that every model detects, in random order."""
    positive = [i for i, row in enumerate(rows) if row.label]
    order = np.random.default_rng(SAMPLE_SEED).permutation(positive)
    everyone = [i for i in order if all(s[i] >= found[arm].threshold for arm, s in scores.items())]
    return [rows[i].text for i in everyone[:most]]


# --- the whole --------------------------------------------------------------------------------


def trained(data: Path, out: Path, texts: int, seed: int, track: Track) -> dict[str, Path]:
    """The checkpoint of each arm; one that is in `out` already is not made again."""
    start = without_lexical(load_start(seed, init=shipped()))
    weights = {arm: shipped() if after is None else out / arm for arm, after in ARMS.items()}
    for arm, after in ARMS.items():
        if after is not None and not (weights[arm] / WEIGHTS_NAME).is_file():
            rows = list(labelled_rows(data_files(data)[TRAIN]))
            fit(start, rows, settings(texts, seed, after), weights[arm], track)
    return weights


def compare(
    weights: Mapping[str, Path],
    data: Path,
    out: Path,
    names: Collection[str],
    most: int,
    track: Track,
) -> Iterator[dict[str, Any]]:
    """Score and attack; what is known after each attack on each model."""
    rows = [row for row in labelled_rows(data_files(data)[DEV_OOD]) if len(row.text) < MOST_CHARS]
    labels = np.array([row.label for row in rows], np.int64)
    screens = {
        arm: OfflineScreen(as_evaluated(Policy(), weights=path)) for arm, path in weights.items()
    }
    scores = {arm: _scores(out / f"{arm}.npy", screens[arm], rows, track) for arm in ARMS}
    found = {arm: clean(scores[arm], labels) for arm in ARMS}
    detected = chosen(rows, scores, found, most)
    known: dict[str, Any] = {
        **run_facts(("vauban", "torch", "numpy")),
        "clean": {arm: asdict(found[arm]) for arm in ARMS},
        "inside": {arm: [] for arm in ARMS},
        "words": {arm: [] for arm in ARMS},
    }
    yield known
    for arm in ARMS if INSIDE in names else ():
        shifts = _inside(weights[arm], detected, found[arm].threshold)
        known["inside"][arm] = [asdict(shift) for shift in shifts]
        yield known
    for attack in attacks(names):
        for arm in ARMS:
            report = _words(attack, screens[arm], detected, found[arm].threshold, arm, track)
            known["words"][arm].append(asdict(report))
            yield known


def _scores(path: Path, screen: OfflineScreen, rows: Sequence[Row], track: Track) -> Floats:
    if not path.is_file():
        parts = []
        for at in range(0, len(rows), SCORED_AT_ONCE):
            part = rows[at : at + SCORED_AT_ONCE]
            parts.append(score_requests(screen, [as_user(row.text) for row in part]))
            track(f"{path.stem}, scores", at + len(part), len(rows))
        np.save(path, np.concatenate(parts))
    scores: Floats = np.load(path)
    return scores


def _inside(weights: Path, texts: Sequence[str], threshold: float) -> list[Shift]:
    config = read_config(weights)
    model = EncoderModel.build(config.architecture, read_tensors(weights, config))
    reader = Reader(WindowTokenizer.load(EncoderPolicy(weights=weights)))
    window = config.window
    windows = worst_windows(model, texts, reader, window.max_tokens, window.overlap_tokens)
    scale = config.calibration
    at = (np.log(threshold / (1 - threshold)) - scale.bias) * scale.temperature
    return from_inside(model, windows, reader.frame, FitConfig().frozen_layers, float(at))


def _words(
    attack: Attack,
    screen: OfflineScreen,
    texts: Sequence[str],
    threshold: float,
    arm: str,
    track: Track,
) -> AttackReport:
    title = f"{attack.name}: {attack.variant}, {arm}"
    return run_attack(
        attack,
        texts,
        partial(score_requests, screen),
        threshold=threshold,
        seed=SAMPLE_SEED,
        track=lambda done: track(title, done, len(texts)),
    )


def tables(document: Mapping[str, Any]) -> Iterator[Table]:
    table = Table("model", "AUC", "recall at 1%", "at 0.1%", title="dev_ood, short texts")
    for arm in ARMS:
        numbers = document["clean"][arm]
        shown = (_interval(numbers[name]) for name in ("auc", "recall", "recall_low"))
        table.add_row(arm, *shown)
    yield table
    title = "share flipped of short attacks that all detect"
    table = Table("model", "attack", "of", "flipped", "changes", "queries", title=title)
    for arm in ARMS:
        for one in document["inside"][arm]:
            name = f"{one['attack']}, {one['length']}"
            table.add_row(arm, name, str(one["detections"]), _interval(one["flipped"]), "", "")
        for one in document["words"][arm]:
            name = f"{one['attack']}: {one['variant']}"
            counts = (_number(one["mean_changes"]), _number(one["mean_queries"]))
            table.add_row(arm, name, str(one["detections"]), _interval(one["share"]), *counts)
    yield table


def _interval(value: Mapping[str, float]) -> str:
    return str(Interval(**value))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="train and dev_ood .jsonl[.gz]")
    parser.add_argument("--out", type=Path, required=True, help="a run that was broken off goes on")
    parser.add_argument("--texts", type=int, default=2048, help="to show to each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attack", action="append", choices=(INSIDE, *WORDS), help="repeatable")
    parser.add_argument("--attacked", type=int, default=60, help="most detections to attack")
    options = parser.parse_args()
    names = options.attack or (INSIDE, *WORDS)
    result = options.out / f"{'-'.join(names)}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    known: dict[str, Any] = {}
    with tracking(Console(stderr=True)) as track:
        weights = trained(options.data, options.out, options.texts, options.seed, track)
        for known in compare(weights, options.data, options.out, names, options.attacked, track):
            result.write_text(json.dumps(known, indent=1) + "\n")
    for table in tables(known):
        Console().print(table)


if __name__ == "__main__":
    main()
