"""Which examples one epoch shows, in which batches. A function of (data, seed, epoch) only.

Every attack once; benign rows drawn per kind, rare and hard kinds more often. An attack longer
than a window is a bag of windows of which the worst counts (multiple-instance learning), because
its rows do not say where the attack stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vauban.detectors.windows import Ids, WindowTokenizer, spans
from vauban.training import augment
from vauban.training.data import Tokens

BENIGN_PER_EPOCH = {
    "benign_chat": 3500,
    "benign_document": 2500,
    "benign_code": 1800,
    "benign_roleplay": 1300,
    "benign_security": 1600,
    "benign_tool_output": 1400,
    "benign_trigger_words": 1400,
}
OWN_BENIGN, OWN_ATTACKS, SPLICED_ATTACKS, SPLICED_BENIGN = 1500, 700, 3000, 1200
MAX_BAG = 3
SHORT_ATTACK_TOKENS = 120


@dataclass(frozen=True, slots=True)
class Example:
    """Windows without special tokens; the label holds for at least one of them."""

    windows: tuple[Ids, ...]
    label: int

    @property
    def longest(self) -> int:
        return max(map(len, self.windows))


class EpochPlan:
    """Batches of one epoch.

    :param body: most text tokens in a window.
    :param batch_tokens: most padded tokens in a batch.
    """

    def __init__(
        self, rows: Sequence[Tokens], tokenizer: WindowTokenizer, *, body: int, batch_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._batch_tokens = batch_tokens
        self._attacks = [row for row in rows if row.label == 1]
        self._benign: dict[str, list[Tokens]] = {}
        for row in rows:
            if row.label == 0:
                self._benign.setdefault(row.kind, []).append(row)
        self._hosts = [
            row.ids
            for kind in ("benign_document", "benign_tool_output", "benign_code", "benign_chat")
            for row in self._benign.get(kind, [])
            if len(row.ids) >= 60
        ]
        self._short_attacks = [
            row.ids
            for row in self._attacks
            if len(row.ids) <= SHORT_ATTACK_TOKENS and row.kind != "jailbreak"
        ]
        framed = tokenizer(["a"]).per_model[0][0]
        self.frame = (int(framed[0]), int(framed[-1]))
        self._breaks = np.array(tokenizer.to_ids(". ! ? : ; }"), np.int32)

    def batches(self, seed: int, epoch: int) -> list[list[Example]]:
        random = np.random.default_rng([seed, epoch])
        examples = self._attack_examples(random) + self._benign_examples(random)
        return self._group(examples, random)

    def _attack_examples(self, random: np.random.Generator) -> list[Example]:
        examples = [Example(self._bag(row.ids), 1) for row in self._attacks]
        own = [self._ids(text) for text in augment.attack_texts(random, OWN_ATTACKS)]
        examples += [Example((ids[: self._body],), 1) for ids in own]
        if self._hosts and self._short_attacks:
            pool = self._short_attacks + own
            for i in random.integers(len(pool), size=SPLICED_ATTACKS):
                examples.append(Example((self._spliced(pool[i], random),), 1))
        return examples

    def _benign_examples(self, random: np.random.Generator) -> list[Example]:
        examples = []
        for kind, rows in sorted(self._benign.items()):
            count = min(BENIGN_PER_EPOCH.get(kind, len(rows)), 2 * len(rows))
            order = np.concatenate([random.permutation(len(rows)) for _ in range(2)])[:count]
            for i in order:
                length = self._body if random.random() < 0.5 else int(random.integers(40, 120))
                ids = augment.crop(rows[i].ids, min(length, self._body), random)
                examples.append(Example((ids,), 0))
        own = [self._ids(text) for text in augment.benign_texts(random, OWN_BENIGN)]
        examples += [Example((ids[: self._body],), 0) for ids in own]
        if self._hosts:
            tricky = own + [row.ids for row in self._benign.get("benign_trigger_words", [])]
            for i in random.integers(len(tricky), size=SPLICED_BENIGN):
                examples.append(Example((self._spliced(tricky[i], random),), 0))
        return examples

    def _bag(self, ids: Ids) -> tuple[Ids, ...]:
        windows = [ids[a:b] for a, b in spans(len(ids), self._body, min(64, self._body // 4))]
        return tuple(windows[:MAX_BAG])

    def _spliced(self, inner: Ids, random: np.random.Generator) -> Ids:
        inner = augment.crop(inner, self._body // 2, random)
        host = self._hosts[int(random.integers(len(self._hosts)))]
        room = int(random.integers(30, max(31, self._body - len(inner))))
        return augment.splice(inner, augment.crop(host, room, random), self._breaks, random)

    def _ids(self, text: str) -> Ids:
        return np.array(self._tokenizer.to_ids(text), np.int32)

    def _group(self, examples: list[Example], random: np.random.Generator) -> list[list[Example]]:
        """Shuffled batches of examples of like length."""
        noise = random.uniform(0.9, 1.1, len(examples))
        order = np.argsort([e.longest * n for e, n in zip(examples, noise, strict=True)])
        batches: list[list[Example]] = []
        batch: list[Example] = []
        windows = longest = 0
        for i in order:
            example = examples[i]
            longest = max(longest, example.longest + 2)
            windows += len(example.windows)
            if batch and windows * longest > self._batch_tokens:
                batches.append(batch)
                batch, windows, longest = [], len(example.windows), example.longest + 2
            batch.append(example)
        batches.append(batch)
        return [batches[i] for i in random.permutation(len(batches))]
