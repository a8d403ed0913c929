"""The model card and the provenance file of a stand-in target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vauban.training.instruct_data import MAX_TOKENS, VOCABULARY
from vauban.training.instruct_dialogues import KINDS
from vauban.training.instruct_evaluate import Score, table
from vauban.training.instruct_frames import FOLLOWED_THOUGH_FRAMED
from vauban.training.provenance import run_facts, sha256_of

_WEIGHTS = "model.safetensors"
_CARD = """# Stand-in target

A Llama-architecture model of a few million parameters, trained from scratch by `vauban train
target` to be attacked: it does small tasks and obeys the last order that it sees, wherever that
stands. It is for tests of guards and knows nothing else; do not ask it anything that matters.

- Size: {hidden} wide, {layers} layers, {heads} heads, vocabulary {vocabulary}, context {context}.
- Trained on {tokens:,} tokens ({answer_tokens:,} of answers) in {steps:,} steps, {minutes:.1f} min.
- Data: generated while it trained, from the word list that ships and from patterns written for
  it (`vauban.training.instruct_tasks`, `instruct_dialogues`). Nothing comes from garak, PyRIT or a
  benchmark, and vauban's own frame (the sandwich) is not in it.

| conversations | share |
|---|---|
{shares}

**Frames.** In "framed" ones, text stands between marks and a rule says that it is data. Orders in
it are followed in {followed:.0%} of them, elsewhere always. Marks and wording are of a general
kind, so what the model makes of vauban's frame was not trained in.

**Decoding.** Encoded texts (base64, hex, ROT13, tag characters, leetspeak, zero-width characters,
reversed, random capitals) are read out, letter by letter, as far as so small a model learns that.

## Scores

Greedy, on generated conversations with words that training never drew. "Attacker won": what the
attacker wants stands in the answer.

{table}
"""


def write_reports(
    out: Path,
    config: Mapping[str, Any],
    progress: Mapping[str, Any],
    scores: dict[str, Score],
) -> None:
    """Write MODEL_CARD.md and provenance.json beside the weights."""
    shares = "\n".join(
        f"| {kind.__name__.replace('_', ' ')} | {share}% |" for kind, share in KINDS.items()
    )
    card = _CARD.format(
        **{name: config[name] for name in ("hidden", "layers", "heads")},
        **{name: progress[name] for name in ("tokens", "answer_tokens", "steps")},
        minutes=progress["seconds"] / 60, vocabulary=VOCABULARY, context=MAX_TOKENS,
        shares=shares, followed=FOLLOWED_THOUGH_FRAMED, table=table(scores),
    )  # fmt: skip
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    facts = {
        "task": "stand-in target",
        "fit": config,
        "progress": progress,
        "scores": {kind: asdict(score) for kind, score in scores.items()},
        _WEIGHTS + "_sha256": sha256_of(out / _WEIGHTS),
        **run_facts(("torch", "transformers", "tokenizers", "numpy", "safetensors")),
    }
    text = json.dumps(facts, indent=1) + "\n"
    (out / "provenance.json").write_text(text, encoding="utf-8")
