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
from vauban.training.provenance import file_sha256, run_facts

PROVENANCE = "provenance.json"
_WEIGHTS = "model.safetensors"
_CARD = """# Stand-in target

A Llama-architecture model of a few million parameters, trained from scratch by `vauban train
target`: it does small tasks and obeys the last order that it sees, wherever that stands.

**Use it only to be attacked**, in tests of guards: never serve it to anybody. It knows nothing,
and gives its secrets to whoever sets its rules aside.

- Size: {hidden} wide, {layers} layers, {heads} heads, vocabulary {vocabulary}, context {context}.
{goes}
- Data: generated while it trained, from the word list that ships and from patterns written for
  it (`vauban.training.instruct_tasks`, `instruct_dialogues`). Nothing comes from garak, PyRIT or a
  benchmark, and vauban's own frame (the sandwich) is not in it.

| conversations | share |
|---|---|
{shares}

**Frames.** In "framed" ones, text stands between marks and a rule says that it is data. It was
shown answers that follow orders in there in {followed:.0%} of them, and elsewhere always. Marks and
wording are of a general kind, so what the model makes of vauban's frame was not trained in.

**Decoding.** Encoded texts (base64, hex, ROT13, tag characters, leetspeak, zero-width characters,
reversed, random capitals) are read out, letter by letter, as far as so small a model learns that.

## Scores

Greedy, on conversations of the same patterns with words that training never drew. "Attacker won":
what the attacker wants stands in the answer.

{table}

**Right in less than half:** {weak}.
"""


def write_reports(
    out: Path,
    config: Mapping[str, Any],
    progress: Mapping[str, Any],
    scores: dict[str, Score],
    began_with: Mapping[str, Any] | None = None,
) -> None:
    """Write MODEL_CARD.md and provenance.json beside the weights.

    :param began_with: the provenance of the target that this one went on from.
    """
    shares = "\n".join(
        f"| {kind.__name__.replace('_', ' ')} | {share}% |" for kind, share in KINDS.items()
    )
    card = _CARD.format(
        **{name: config[name] for name in ("hidden", "layers", "heads")},
        vocabulary=VOCABULARY, context=MAX_TOKENS, goes="\n".join(_goes(progress, began_with)),
        shares=shares, followed=FOLLOWED_THOUGH_FRAMED, table=table(scores), weak=_weak(scores),
    )  # fmt: skip
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    facts = {
        "task": "stand-in target",
        "fit": config,
        "progress": progress,
        "scores": {kind: asdict(score) for kind, score in scores.items()},
        _WEIGHTS + "_sha256": file_sha256(out / _WEIGHTS),
        **run_facts(("torch", "transformers", "tokenizers", "numpy", "safetensors")),
        **({"began_with": _without_scores(began_with)} if began_with else {}),
    }
    text = json.dumps(facts, indent=1) + "\n"
    (out / PROVENANCE).write_text(text, encoding="utf-8")


def _goes(progress: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """A line for each training, the first one first."""
    earlier = _goes(before["progress"], before.get("began_with")) if before else []
    line = "- {} {tokens:,} tokens ({answer_tokens:,} of answers) in {steps:,} steps, {:.1f} min."
    start = "Then trained further on" if earlier else "Trained on"
    return [*earlier, line.format(start, progress["seconds"] / 60, **progress)]


def _weak(scores: dict[str, Score]) -> str:
    weak = [kind for kind, score in scores.items() if 2 * score.right < score.asked]
    return ", ".join(weak) or "none"


def _without_scores(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Enough to know an earlier training by; its scores and losses are no longer the model's."""
    kept = {name: value for name, value in facts.items() if name not in ("task", "scores")}
    kept["progress"] = {n: v for n, v in facts["progress"].items() if n != "losses"}
    return kept
