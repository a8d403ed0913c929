"""Conversations as tokens, drawn ahead by worker processes. No torch in here."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from vauban.standin import SPECIAL_TOKENS
from vauban.training.instruct_dialogues import conversation
from vauban.training.instruct_texts import Texts
from vauban.training.instruct_turns import Conversation, Turn

VOCABULARY = 3_072
MAX_TOKENS = 4_096
END = "<|im_end|>"
_TOKENIZER_TEXTS = 16_000
_POOL_BATCHES = 12
_AHEAD = 3  # pools per worker that wait to be trained on

# Digits, marks and a change from small to capital letters part tokens: what is encoded then falls
# into short pieces, which a small model can decode.
_PIECES = r" ?\p{Lu}?\p{Ll}+| ?\p{Lu}+(?!\p{Ll})| ?\p{L}|\p{N}| ?[^\s\p{L}\p{N}]|\s+"


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer of the generated texts' own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = Texts(random.Random(seed), long=False)  # noqa: S311 - training data
    drawn = (conversation(texts) for _ in range(_TOKENIZER_TEXTS))
    tokenizer.train_from_iterator((turn.text for c in drawn for turn in c.turns), trainer)
    return tokenizer


def rendered(turns: Sequence[Turn]) -> str:
    """As the chat template writes them, up to where the assistant's next answer begins."""
    parts = [f"<|im_start|>{turn.role}\n{turn.text}{END}\n" for turn in turns]
    return "".join(parts) + "<|im_start|>assistant\n"


class Encoder:
    """Conversations to token ids, answers marked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        (self._end,) = self._ids(END)
        self._letters: dict[str, list[int]] = {}

    def encode(self, found: Conversation) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether it is learned as an answer (its end is)."""
        ids: list[int] = []
        learned: list[bool] = []
        waiting: list[Turn] = []
        opening = ""
        for turn in found.turns:
            if turn.role != "assistant":
                waiting.append(turn)
                continue
            prompt = self._ids(opening + rendered(waiting))
            answer = self._spelled(turn.text) if turn.spelled else self._ids(turn.text)
            ids += [*prompt, *answer, self._end]
            learned += [False] * len(prompt) + [True] * (len(answer) + 1)
            waiting, opening = [], "\n"
        return ids, learned

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _spelled(self, text: str) -> list[int]:
        ids: list[int] = []
        for letter in text:
            if letter not in self._letters:
                self._letters[letter] = self._ids(letter)
            ids += self._letters[letter]
        return ids


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids`, `kinds`: (rows, tokens) uint16 and uint8; kinds: 0 padding, 1 prompt, 2 answer."""

    ids: NDArray[np.uint16]
    kinds: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a worker draws: batches of `batch_tokens` (padding counted) with rows of one length."""

    tokenizer: Path
    seed: int
    batch_tokens: int
    max_tokens: int = MAX_TOKENS


def draw_pool(spec: PoolSpec, number: int, *, long: bool) -> list[Batch]:
    """The pool of this number: the same whoever draws it."""
    encoder = _encoder(spec.tokenizer)
    rng = random.Random(f"{spec.seed}/{number}")  # noqa: S311 - training data
    texts = Texts(rng, long=long)
    rows: list[tuple[list[int], list[bool]]] = []
    total = 0
    while total < _POOL_BATCHES * spec.batch_tokens:
        row = encoder.encode(conversation(texts))
        if len(row[0]) <= min(spec.max_tokens, spec.batch_tokens):
            rows.append(row)
            total += len(row[0])
    rows.sort(key=lambda row: len(row[0]))
    batches = [_batch(group) for group in _groups(rows, spec.batch_tokens)]
    rng.shuffle(batches)
    return batches


def _groups(
    rows: Sequence[tuple[list[int], list[bool]]], budget: int
) -> Iterator[Sequence[tuple[list[int], list[bool]]]]:
    first = 0
    for last in range(len(rows)):
        if (last + 1 - first) * len(rows[last][0]) > budget:
            yield rows[first:last]
            first = last
    yield rows[first:]


def _batch(rows: Sequence[tuple[list[int], list[bool]]]) -> Batch:
    width = len(rows[-1][0])
    ids = np.zeros((len(rows), width), np.uint16)
    kinds = np.zeros((len(rows), width), np.uint8)
    for place, (row, learned) in enumerate(rows):
        ids[place, : len(row)] = row
        kinds[place, : len(row)] = np.asarray(learned, np.uint8) + 1
    return Batch(ids, kinds)


_encoders: dict[Path, Encoder] = {}


def _encoder(path: Path) -> Encoder:
    if path not in _encoders:
        _encoders[path] = Encoder(Tokenizer.from_file(str(path)))
    return _encoders[path]


class Feed:
    """Pools without end, the next ones drawn meanwhile by `workers` processes (0: by this one).

    Make it before CUDA is in use: the workers are forked.

    :param impatient: show the last pools again while the next one is not ready; what is shown
        then depends on the machine's speed.
    """

    def __init__(self, spec: PoolSpec, workers: int, *, impatient: bool = False) -> None:
        self.drawn = self.repeated = 0
        self.long = False
        self._spec, self._impatient = spec, impatient
        self._waiting: deque[Future[list[Batch]]] = deque()
        self._recent: deque[list[Batch]] = deque(maxlen=32)
        self._number = 0
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(workers, context, _quiet)
            self._submit()

    def pools(self) -> Iterator[list[Batch]]:
        while True:
            if self._executor is None:
                self._number += 1
                self.drawn += 1
                yield draw_pool(self._spec, self._number - 1, long=self.long)
                continue
            self._submit()
            if self._impatient and self._recent and not self._waiting[0].done():
                self.repeated += 1
                self._recent.rotate(1)
                yield self._recent[0]
                continue
            pool = self._waiting.popleft().result()
            self._recent.append(pool)
            self.drawn += 1
            yield pool

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self) -> None:
        while self._executor is not None and len(self._waiting) < _AHEAD * self._workers:
            task = self._executor.submit(draw_pool, self._spec, self._number, long=self.long)
            self._waiting.append(task)
            self._number += 1


def _quiet() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
