"""MODEL_CARD.md from the numbers of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vauban.detectors.checkpoint import CheckpointConfig
from vauban.detectors.excerpts import MIN_TOKENS, SHORT_TOKENS
from vauban.training import evaluate, report
from vauban.training.evaluate import Floats
from vauban.training.fit import FitConfig
from vauban.training.labelled import Row

if TYPE_CHECKING:
    from vauban.training.finish import Split

_CARD = """# Encoder: injection score and embedding

One BERT-class model ({layers} layers, {hidden} wide, {vocab} WordPiece tokens, uncased) that gives
for every window of at most {window} tokens an injection logit and a unit embedding. Long text is
read in windows that overlap by {overlap} tokens; the score is the worst window's, less
{discount:g} log n in the logit where the text fills n different windows, the embedding their mean.
A window whose own logit is {excerpts:+g} or more is scored again without its first half and without
its last, against words that are added to calm it; one of up to {short} tokens also without 2 to 16
tokens of the start, without 4 and 8 of the end, and, from {least} tokens on, as the half or more
that the lexical head finds worst. Weights are int8 with one scale per row.

## Intended use

Screening of prompts, tool results and documents before a language model reads them, inside
vauban. The score is `sigmoid(logit / {temperature:.3f} + {bias:+.3f})`, in [0, 1], 1 = worst.
Blocks at {block_at:.4f}, flags at {flag_at:.4f}. It is one layer of a defence: not for judging
people, not a content-safety classifier (a plain harmful question is no injection), and not the
only protection of anything that matters.

## Numbers

Int8 weights, through the encoder that serves, whole rows. 95% bootstrap intervals over rows
(rows of one cluster are near-duplicates, so true intervals are wider). Recall is at the threshold
that has the named false-positive rate on the same file.

{numbers}

Thresholds over all files together: {thresholds}.
At `block_at`, per file: {operating}.
Calibration error (15 bins) over all files: {error:.3f} (fitted on them, so optimistic).
Mean cosine between embeddings and those of the base model: {cosines}.

## Recipe

Start: all-MiniLM-L6-v2 (Apache-2.0). Frozen: word embeddings and the lowest {frozen} layers. Deep
head: attention pooling with {queries} queries, one hidden layer. Lexical head: logistic regression
on hashed WordPiece tokens and pairs of neighbours ({buckets:,} weights), fitted by itself and added
with a weight chosen on the development files.

Texts are disturbed (typos, synonyms, look-alike and invisible characters, encodings), then read
through the guard's normaliser, attacks and harmless texts alike, so that a disguise by itself says
nothing. About a third of them come from template grammars of our own (`data/grammar/`), about a
fifth of the attacks are spliced into harmless documents at random depth, some are cut over turns or
surrounded by harmless words. Of long texts the windows with the most suspicious word pairs are
shown; the worst carries the label.

Loss: binary cross-entropy on the worst window of an example (label smoothing {smoothing:g}) and,
one step in {every}, {weight:g} x (1 - cosine to the base model's embedding){adversarial}. AdamW,
learning rate {rate:g} (head {head_rate:g}), {examples:,} texts, windows of {train_window} tokens,
running mean of the weights. In each window up to {dropout:.0%} of the words stand hidden.
{hard}{stages}Made by {commands}; provenance.json has hashes, versions and settings.

## Data

| source | licence | attack | benign |
|---|---|---|---|
{sources}

Texts are not redistributed. Development files guided training and set calibration and thresholds,
so the numbers above are optimistic; no test set was used.

## Known failures

- English WordPiece: attacks in languages of other scripts are read character by character or as
  unknown tokens, and recall there is low.
- Encoded attacks (base64, hex, rot13, reversed) are only found after decoding, which the guard's
  text normaliser does before the encoder.
- Rewordings made against this model by someone who may try often; `vauban evaluate injection
  --attack` measures how often that works.
- A harmless text that quotes an attack at length can be blocked; an attack phrased as an ordinary
  request (no override, no role change) can pass.
- Attacks of a kind that no source has shown: where one source is left out of training, far fewer of
  its attacks are found than the table says; `vauban train validate` measures how many.
- Attacks split over several requests: each is scored by itself.
- The longer a text, the surer a window of it must be: who fills n windows with different harmless
  words lowers the logit of an attack by {discount:g} log n.
"""


_ADVERSARIAL = """, and
cross-entropy under the worst shift, to first order, of the hidden states after the frozen layers
(arXiv 1605.07725; length {:g} x the mean token's)"""

_HARD = """After {:.0%} of the run only examples that are wrong or near it are learned from.
"""

_SEVERAL = """What ships is the mean of the weights of {} runs (arXiv 2203.05482); these are
the settings of the first, the others' are in provenance.json.
"""

_CONTINUED = """These are the settings of the last stage;
it went on from earlier ones, whose settings are under `init` in provenance.json. A stage with
`steps` there was stopped after so many; earlier stages may have drawn examples a little
differently, so a new run gives like weights, not the same.
"""


def model_card(
    final: CheckpointConfig,
    config: FitConfig,
    splits: Sequence[Split],
    rows: Sequence[Row],
    *,
    continued: bool = False,
    runs: int = 1,
) -> str:
    """:param continued: the run went on from another checkpoint instead of the base model.
    :param runs: how many runs' weights were averaged.
    """
    arch, window, calibration = final.architecture, final.window, final.calibration
    scored = [(s, _scores(s, final)) for s in splits]
    return _CARD.format(
        layers=arch.layers,
        hidden=arch.hidden_size,
        vocab=f"{arch.vocab_size:,}",
        window=window.max_tokens,
        overlap=window.overlap_tokens,
        excerpts=config.excerpts_from_logit,
        short=SHORT_TOKENS,
        least=2 * MIN_TOKENS,
        discount=config.long_discount,
        temperature=calibration.temperature,
        bias=calibration.bias,
        block_at=final.block_at,
        flag_at=final.flag_at,
        numbers=_numbers(splits),
        thresholds=", ".join(
            f"{float(rate):.1%} FPR at {score:.4f}" for rate, score in final.thresholds.items()
        ),
        operating="; ".join(_operating(s, p, final.block_at) for s, p in scored),
        error=evaluate.calibration_error(
            np.concatenate([p for _, p in scored]), np.concatenate([s.labels for s in splits])
        ),
        cosines=", ".join(f"{s.name} {s.cosine:.3f}" for s in splits),
        frozen=config.frozen_layers,
        queries=arch.head_queries,
        smoothing=config.label_smoothing,
        every=config.distill_every,
        weight=config.distill_weight,
        rate=config.learning_rate,
        head_rate=config.head_learning_rate,
        examples=config.examples,
        dropout=config.word_dropout,
        hard=_HARD.format(config.hard_after) if config.hard_after < 1 else "",
        buckets=arch.lexical_buckets,
        adversarial=_ADVERSARIAL.format(config.adversarial_length)
        if config.adversarial_after < 1
        else "",
        train_window=config.window_tokens,
        sources=_sources(rows),
        stages=_SEVERAL.format(runs) if runs > 1 else _CONTINUED if continued else "",
        commands="`vauban train injection` and `vauban train average`"
        if runs > 1
        else "`vauban train injection`",
    )


def _scores(split: Split, final: CheckpointConfig) -> Floats:
    c = final.calibration
    return evaluate.calibrate(split.logits(), c.temperature, c.bias)


def _numbers(splits: Sequence[Split]) -> str:
    titles = ["file", "attacks", "benign", "AUC"]
    titles += [f"recall at {rate:.1%} FPR" for rate in evaluate.RATES]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for split in splits:
        found = report.detection(split.logits(), split.labels, evaluate.RATES)
        cells = [split.name, str(found.attacks), str(found.benign), str(found.auc)]
        cells += [str(at.recall) for at in found.recall]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _operating(split: Split, scores: Floats, block_at: float) -> str:
    at = report.operating("block_at", block_at, scores, split.labels)
    return f"{split.name} recall {at.recall}, false positives {at.false_positives}"


def _origin(row: Row) -> tuple[str, str]:
    if row.source.startswith("composite"):
        return "combinations of the others", "licences of both parts"
    return row.source, row.license


def _sources(rows: Sequence[Row]) -> str:
    counts = Counter((*_origin(row), row.label) for row in rows)
    names = sorted({(source, license_) for source, license_, _ in counts})
    return "\n".join(
        f"| {source} | {license_} | {counts[source, license_, 1]} | {counts[source, license_, 0]} |"
        for source, license_ in names
    )
