"""The texts that simulated callers ask: from the labelled files, and made up for thieves.

Two worlds without a common source: `fit` for the honest reference, `held_out` to measure with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from vauban.training.labelled import UNKNOWN, labelled_rows

WORLDS: Final = ("fit", "held_out")
HELD_OUT_SOURCES: Final = frozenset({
    "clinc/oos-eval", "ParakweetLabs/EmailIntentDataSet", "cyberark/FuzzyAI",
    "princeton-nlp/SWE-agent", "Lightning-AI/LitServe", "google-deepmind/xquad",
    "meta-llama/PurpleLlama", "f/awesome-chatgpt-prompts",
})  # fmt: skip
TOOL_SOURCES: Final = frozenset({"sierra-research/tau-bench", "hiyouga/LLaMA-Factory"})
MOST_CHARS: Final = 220
"""A query is read up to here; more would cost time and hardly move its embedding."""
GENERATED: Final = 900
_SHARES: Final[Mapping[str, float]] = {
    "benign_chat": 0.5, "benign_code": 0.35, "benign_document": 0.15, "benign_roleplay": 0.7,
    "benign_security": 0.3, "benign_tool_output": 0.1, "benign_trigger_words": 0.3,
}  # fmt: skip
_WHOLE: Final = frozenset({"benign_chat", "benign_code"})
_OTHER_LANGUAGES: Final = 0.12
_MIN_CHARS: Final = 12

_FOLLOW_UPS: Final = (
    "Add a concrete example for each step.", "Explain it to a ten-year-old.",
    "Answer in exactly three sentences.", "Give the reasoning first and the answer last.",
    "Make it harder by adding one more constraint.", "Rewrite the answer as a table.",
    "Use a formal tone.", "Compare two approaches.", "List the common mistakes people make.",
    "Also say what would change if the opposite were true.",
    "Write it as JSON with keys question, thoughts, answer.", "End with a short quiz.",
)  # fmt: skip
_VERBS: Final = (
    "Write", "Explain", "Summarise", "Compare", "Draft", "Plan", "Criticise", "Outline",
    "Translate into French", "Describe",
)  # fmt: skip
_FORMS: Final = (
    "an essay", "a poem", "a short story", "a lesson plan", "an e-mail", "a press release",
    "a dialogue", "a list of ten facts", "a python script", "a recipe", "a contract clause",
    "a product description",
)  # fmt: skip
_WRAPPERS: Final[Mapping[str, str]] = {
    "instruction_wrapper": "You are a helpful assistant. Below is an instruction. Write a response"
    " that completes the request.\n### Instruction:\n{}\n### Response:",
    "chain_of_thought": "Think step by step and then answer.\nQ: {}\nA: Let's think step by step.",
    "expert_wrapper": "Act as an expert. Task: {} Give a long and detailed answer.",
}


@dataclass(frozen=True, slots=True)
class Text:
    """`world`: one of `WORLDS`. `kind`: what pool it belongs to."""

    world: str
    kind: str
    text: str
    tools: bool = False


def texts(data: Path, seed: int = 0) -> list[Text]:
    """All texts of both worlds, those of the files first.

    :param data: directory with train, dev and dev_ood `.jsonl[.gz]`.
    """
    rng = Random(seed)  # noqa: S311 - a simulation
    found = list(_from_files(data, rng))
    for number, world in enumerate(WORLDS):
        queries = [t.text for t in found if t.world == world and t.kind == "query"]
        found += _generated(world, number, queries, rng)
    return found


def _from_files(data: Path, rng: Random) -> Iterator[Text]:
    for path in sorted(data.glob("*.jsonl*")):
        for row in labelled_rows(path):
            if row.label or row.source.startswith("composite") or len(row.text) < _MIN_CHARS:
                continue
            whole = path.name.startswith("dev_ood") and row.kind in _WHOLE
            if not whole and rng.random() >= _SHARES.get(row.kind, 0.2):
                continue
            source = row.source.partition(":")[0]
            kind = _pool_of(row.kind)
            foreign = row.lang not in ("en", "code", UNKNOWN)
            if kind == "query" and foreign and rng.random() >= _OTHER_LANGUAGES:
                continue
            world = WORLDS[source in HELD_OUT_SOURCES]
            yield Text(world, kind, row.text[:MOST_CHARS], source in TOOL_SOURCES)


def _pool_of(kind: str) -> str:
    if kind in ("benign_chat", "benign_security", "benign_trigger_words"):
        return "query"
    return {"benign_code": "code", "benign_roleplay": "role_play"}.get(kind, "document")


def _generated(world: str, number: int, queries: Sequence[str], rng: Random) -> list[Text]:
    words = sorted({w.lower() for text in queries for w in re.findall(r"[A-Za-z]{4,12}", text)})
    words = words[number :: len(WORLDS)]
    seeds = rng.sample(queries, 60)
    found: list[tuple[str, str]] = []
    for _ in range(GENERATED):
        found.append(("dictionary", rng.choice(words)))
        pieces = (rng.choice(words)[: rng.randint(2, 6)] for _ in range(rng.randint(5, 20)))
        found.append(("random_tokens", " ".join(pieces)))
        found.append((
            "taxonomy",
            f"{rng.choice(_VERBS)} {rng.choice(_FORMS)} about {rng.choice(words)} and"
            f" {rng.choice(words)}.",
        ))  # fmt: skip
        found.append(("evolved", f"{rng.choice(queries)[:180]} {rng.choice(_FOLLOW_UPS)}"))
        moved = rng.choice(seeds).split()
        for _ in range(rng.randint(1, 4)):
            moved[rng.randrange(len(moved))] = rng.choice(words)
        found.append(("perturbed_seeds", " ".join(moved)))
    for kind, wrapper in _WRAPPERS.items():
        found += [(kind, wrapper.format(text[:180])) for text in rng.sample(queries, 500)]
    return [Text(world, kind, text[:MOST_CHARS]) for kind, text in found]
