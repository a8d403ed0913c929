"""Which examples a training run shows: pools of texts, a function of (data, seed, pool) only.

A pool mixes rows of the training file, texts of our own grammars, and attacks (or harmless texts
that look like them) spliced into documents at random depth. Some are disturbed (`perturb.py`)
before the guard's normaliser reads them, attacks and harmless texts alike, so that a disguise
by itself says nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vauban.detectors.windows import Ids, spans
from vauban.training import augment
from vauban.training.grammar import Grammar, load_grammars
from vauban.training.labelled import Row
from vauban.training.lexicon import Lexicon
from vauban.training.perturb import CHARACTERS, ENCODINGS, WORDS, Perturbation
from vauban.training.reader import Reader

POOL_EXAMPLES = 1024
MAX_BAG = 2
_BENIGN_WEIGHT: Mapping[str, float] = {
    "benign_chat": 0.28,
    "benign_document": 0.18,
    "benign_code": 0.14,
    "benign_roleplay": 0.09,
    "benign_security": 0.11,
    "benign_tool_output": 0.11,
    "benign_trigger_words": 0.09,
}
# Harmless words of the attacks that `vauban evaluate` mounts are left out: they measure.
_DISTURBANCES: Sequence[Perturbation] = [*WORDS.values(), *CHARACTERS.values(), *ENCODINGS.values()]
_HOST_KINDS = ("benign_document", "benign_tool_output", "benign_code", "benign_chat")
_PAYLOADS = "planted"  # the grammar of texts that are attacks inside a document only
_MIN_HOST_CHARS, _MAX_PAYLOAD_CHARS = 160, 600


@dataclass(frozen=True, slots=True)
class MixtureConfig:
    """Shares in [0, 1]. What is neither grammar nor spliced is a row of the training file."""

    attacks: float = 0.45
    grammar: float = 0.32
    spliced: float = 0.22
    patchwork: float = 0.06  # of the harmless texts
    disturbed_attacks: float = 0.4
    disturbed_benign: float = 0.2


@dataclass(frozen=True, slots=True)
class Example:
    """Windows without special tokens; the label holds for at least one of them."""

    windows: tuple[Ids, ...]
    label: int

    @property
    def longest(self) -> int:
        return max(map(len, self.windows))


Draw = Callable[[np.random.Generator], str]
T = TypeVar("T")


class Mixture:
    """:param body: most text tokens in a window; `overlap` of them shared by neighbours."""

    def __init__(
        self,
        rows: Sequence[Row],
        reader: Reader,
        lexicon: Lexicon,
        *,
        body: int,
        overlap: int,
        config: MixtureConfig | None = None,
    ) -> None:
        self._reader = reader
        self._lexicon = lexicon
        self._body, self._overlap = body, overlap
        self._config = config or MixtureConfig()
        self._attacks = _by_source([row for row in rows if row.label == 1])
        benign = [row for row in rows if row.label == 0]
        self._benign = {
            kind: _by_source([row for row in benign if row.kind == kind])
            for kind in sorted({row.kind for row in benign})
        }
        weights = np.array([_BENIGN_WEIGHT.get(kind, 0.05) for kind in self._benign])
        self._kinds, self._kind_weights = list(self._benign), weights / weights.sum()
        self._short_attacks = _by_source(
            [
                row
                for row in rows
                if row.label == 1
                and row.kind != "jailbreak"
                and not row.source.startswith("composite")
                and len(row.text) <= _MAX_PAYLOAD_CHARS
            ]
        )
        self._hosts = {
            kind: [r.text for r in benign if r.kind == kind and len(r.text) >= _MIN_HOST_CHARS]
            for kind in _HOST_KINDS
        }
        self._requests = [r.text for r in benign if r.kind == "benign_chat" and len(r.text) <= 300]
        self._vocabulary = _vocabulary(benign)
        self._grammars = load_grammars(self._slots())

    def pool(self, seed: int, number: int) -> list[Example]:
        """About half a thousand attacks and as many harmless examples, in random order."""
        random = np.random.default_rng([seed, number])
        examples: list[Example] = []
        while len(examples) < POOL_EXAMPLES:
            label = int(random.random() < self._config.attacks)
            text = self._attack(random) if label else self._harmless(random)
            if example := self.example(text, label, random):
                examples.append(example)
        return examples

    def example(self, text: str, label: int, random: np.random.Generator) -> Example | None:
        """The windows of a text worth showing; None for a text without a token."""
        windows = [
            ids[a:b]
            for ids in self._reader.labelled(text, label)
            for a, b in spans(len(ids), self._body, self._overlap)
        ]
        if not windows:
            return None
        if label:
            return Example(tuple(self._lexicon.likeliest(windows, MAX_BAG)), 1)
        if random.random() < 0.5:
            return Example(tuple(self._lexicon.likeliest(windows, 1)), 0)
        return Example((windows[int(random.integers(len(windows)))],), 0)

    def _attack(self, random: np.random.Generator) -> str:
        part = random.random()
        grammars = self._of_label(1)
        if part < self._config.grammar and grammars:
            text = _weighted(grammars, random).text(random)
        elif part < self._config.grammar + self._config.spliced and self._can_splice():
            text = self._spliced(self._payload(random), random)
        else:
            text = _draw(self._attacks, random)
        if random.random() < self._config.disturbed_attacks:
            text = self._disturb(text, random)
        return text

    def _harmless(self, random: np.random.Generator) -> str:
        part = random.random()
        grammars = self._of_label(0)
        if part < self._config.grammar and grammars:
            text = _weighted(grammars, random).text(random)
        elif part < self._config.grammar + self._config.spliced / 2 and self._can_splice():
            text = self._spliced(self._tricky(random), random)
        elif part > 1 - self._config.patchwork and self._can_splice():
            text = self._patchwork(random)
        else:
            kind = self._kinds[int(random.choice(len(self._kinds), p=self._kind_weights))]
            length = int(random.choice([120, 300, 550, 1600], p=[0.2, 0.25, 0.4, 0.15]))
            text = augment.crop(_draw(self._benign[kind], random), length, random)
        if random.random() < self._config.disturbed_benign:
            text = self._disturb(text, random)
        return text

    def _of_label(self, label: int) -> list[Grammar]:
        return [g for g in self._grammars if g.label == label and g.name != _PAYLOADS]

    def _payload(self, random: np.random.Generator) -> str:
        """A short attack that can stand inside a document."""
        own = [g for g in self._grammars if g.name in (_PAYLOADS, "override", "leak", "classic")]
        if own and (not self._short_attacks or random.random() < 0.5):
            return augment.crop(_pick(own, random).text(random), _MAX_PAYLOAD_CHARS, random)
        return _draw(self._short_attacks, random)

    def _tricky(self, random: np.random.Generator) -> str:
        """A harmless text with the words of attacks."""
        own = [g for g in self._of_label(0) if g.name in ("trigger_words", "human_instructions")]
        if own and random.random() < 0.6:
            return augment.crop(_pick(own, random).text(random), _MAX_PAYLOAD_CHARS, random)
        kind = "benign_trigger_words" if "benign_trigger_words" in self._benign else self._kinds[0]
        return augment.crop(_draw(self._benign[kind], random), _MAX_PAYLOAD_CHARS, random)

    def _can_splice(self) -> bool:
        return bool(self._short_attacks) and any(self._hosts.values())

    def _spliced(self, inner: str, random: np.random.Generator) -> str:
        """Mostly within one window, so that it is known where the payload stands."""
        length = int(random.choice([100, 220, 380, 1400], p=[0.25, 0.3, 0.3, 0.15]))
        return augment.splice(inner, self._host(random, length), random)

    def _patchwork(self, random: np.random.Generator) -> str:
        parts = []
        for _ in range(int(random.integers(3, 10))):
            draw = random.random()
            if draw < 0.25:
                parts.append(self._tricky(random))
            elif draw < 0.5 and self._requests:
                parts.append(_pick(self._requests, random))
            else:
                parts.append(self._host(random, 400))
        return augment.patchwork(parts, random)

    def _host(self, random: np.random.Generator, length_chars: int) -> str:
        filled = [hosts for hosts in self._hosts.values() if hosts]
        return augment.crop(_pick(_pick(filled, random), random), length_chars, random)

    def _disturb(self, text: str, random: np.random.Generator) -> str:
        part = random.random()
        if part < 0.45 and self._requests:
            return augment.surround(text, self._requests, random)
        if part < 0.55:
            return augment.over_turns(text, random)
        few = part < 0.77  # typos and synonyms, which no normaliser undoes
        return _pick(_DISTURBANCES[: len(WORDS)] if few else _DISTURBANCES, random)(text, random)

    def _slots(self) -> dict[str, Draw]:
        """What grammars may ask for besides their own rules."""

        def excerpt(kind: str) -> Draw:
            hosts = self._hosts.get(kind) or self._requests or ["An ordinary text."]
            return lambda random: augment.crop(
                _pick(hosts, random), int(random.integers(80, 420)), random
            )

        return {
            "document": excerpt("benign_document"),
            "code": excerpt("benign_code"),
            "tool_output": excerpt("benign_tool_output"),
            "request": lambda random: _pick(self._requests or ["Help me, please."], random),
            "harmless": lambda random: augment.crop(self._tricky(random), 160, random),
            "gibberish": lambda random: augment.gibberish(self._vocabulary, random),
        }


@dataclass(frozen=True, slots=True)
class _Source:
    texts: list[str]
    weight: float


def _by_source(rows: Sequence[Row]) -> list[_Source]:
    """Texts per source; large sources count by the square root of their size."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row.source, []).append(row.text)
    total = sum(math.sqrt(len(t)) for t in texts.values())
    return [_Source(t, math.sqrt(len(t)) / total) for _, t in sorted(texts.items())]


def _draw(sources: Sequence[_Source], random: np.random.Generator) -> str:
    source = sources[int(random.choice(len(sources), p=[s.weight for s in sources]))]
    return _pick(source.texts, random)


def _weighted(grammars: Sequence[Grammar], random: np.random.Generator) -> Grammar:
    weights = np.array([grammar.weight for grammar in grammars])
    return grammars[int(random.choice(len(grammars), p=weights / weights.sum()))]


def _pick(items: Sequence[T], random: np.random.Generator) -> T:
    return items[int(random.integers(len(items)))]


def _vocabulary(rows: Sequence[Row]) -> list[str]:
    """Words, half words and punctuation of the harmless rows, for gibberish."""
    pieces: set[str] = set()
    for row in rows[:: max(1, len(rows) // 4000)]:
        for word in re.findall(r"[^\W\d_]{3,}|[^\w\s]{1,3}", row.text[:400]):
            pieces.add(word)
            if len(word) > 6:
                pieces.add(word[: len(word) // 2])
                pieces.add(word[len(word) // 2 :])
    return sorted(pieces)
