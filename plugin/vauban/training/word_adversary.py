"""Words that calm the model in training, found by its own gradient, so that it learns to resist.

An attacker who sees scores adds the harmless words, or misspells the words, that lower the score
most. Here one gradient pass over the attacks of a batch says to first order which words of the
vocabulary would do so in a given place, and which words of the attack carry its score (HotFlip,
arXiv 1712.06751). A run of tokens of a harmless text is added as well, the calmest of a few draws.
Harmless examples get the same additions and misspellings, so that by themselves they say nothing.

Covers: words and runs of text before, after and inside an attack that is one window; typos and
synonyms. Does not cover: attacks of several windows, paraphrases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from vauban.detectors.bert import EncoderModel
from vauban.detectors.windows import Ids
from vauban.training import perturb
from vauban.training.mixture import Example
from vauban.training.perturb_words import HARMLESS_SENTENCES, HARMLESS_WORDS, SYNONYMS

MAX_WORDS, MAX_RUN_TOKENS, RUN_DRAWS = 8, 24, 4
_CANDIDATES = 4096  # words looked at per batch, drawn at random: the answer is not always the same
_BEFORE, _AFTER = 0.45, 0.45  # the rest: inside
_Move = Literal["words", "run", "spelling"]
_MOVES: Sequence[_Move] = ("words", "run", "spelling")
_SHARES = (0.45, 0.3, 0.25)
_TYPOS_EACH = 2
_MIN_LETTERS = 3

Floats = NDArray[np.floating[Any]]
Collate = Callable[[Sequence[Ids]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Words:
    """`added`: ids of whole words; `rewritten`: per id of a word the ids of versions of it.

    Words that the attacks of `vauban evaluate` add are left out: they measure.
    """

    added: NDArray[np.int64]
    rewritten: Mapping[int, tuple[Ids, ...]]

    @classmethod
    def of(cls, tokenizer: str, seed: int = 0) -> Words:
        """:param tokenizer: an uncased WordPiece `tokenizer.json`."""
        random = np.random.default_rng(seed)
        encode = Tokenizer.from_str(tokenizer)
        vocab: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
        measures = {w.lower() for w in " ".join([*HARMLESS_WORDS, *HARMLESS_SENTENCES]).split()}
        words = [
            word
            for word in vocab
            if len(word) >= _MIN_LETTERS and word.isascii() and word.isalpha()
        ]
        typos = [
            (word, perturb.typo(word, kind, random))
            for word in words
            if len(word) > _MIN_LETTERS
            for kind in random.permutation(perturb.TYPO_KINDS)[:_TYPOS_EACH].tolist()
        ]
        synonyms = [(word, other) for word in words for other in SYNONYMS.get(word, ())]
        pairs = [(word, other) for word, other in typos + synonyms if word != other]
        found: dict[int, list[Ids]] = {}
        encoded = encode.encode_batch([other for _, other in pairs], add_special_tokens=False)
        for (word, _), ids in zip(pairs, encoded, strict=True):
            found.setdefault(vocab[word], []).append(np.array(ids.ids, np.int32))
        added = np.array([vocab[word] for word in words if word not in measures], np.int64)
        return cls(added, {word: tuple(versions) for word, versions in found.items()})


class WordAdversary:
    """:param collate: pads windows and frames them with [CLS] and [SEP], on the model's device.
    :param share: of the examples of a batch that are one window, how many are changed.
    """

    def __init__(self, model: EncoderModel, words: Words, collate: Collate, share: float) -> None:
        self._model, self._words, self._collate, self._share = model, words, collate, share

    def __call__(self, batch: Sequence[Example], random: np.random.Generator) -> list[Example]:
        """The batch, a share of its examples changed; labels stay."""
        changed = list(batch)
        moves: dict[int, _Move] = {
            i: _MOVES[int(random.choice(len(_MOVES), p=_SHARES))]
            for i, example in enumerate(batch)
            if len(example.windows) == 1 and random.random() < self._share
        }
        calm = [example.windows[0] for example in batch if not example.label]
        added: list[Ids] = []

        def change(move: _Move, by: Callable[[Sequence[Ids]], Sequence[Ids]]) -> None:
            rows = [i for i, other in moves.items() if other == move and batch[i].label]
            for i, window in zip(rows, by([batch[i].windows[0] for i in rows]), strict=True):
                changed[i] = Example((window,), 1)

        change("words", lambda windows: self._with_words(windows, random, added))
        change("run", lambda windows: self._with_runs(windows, calm, random, added))
        change("spelling", lambda windows: self._misspelt(windows, random))
        for i, move in moves.items():
            if not batch[i].label:
                window = batch[i].windows[0]
                if move == "spelling":
                    window = self._rewritten(window, random.random(len(window)), random)
                elif added:
                    other = added[int(random.integers(len(added)))]
                    window = _inserted(window, other, _place(len(window), random))
                changed[i] = Example((window,), 0)
        return changed

    def _with_words(
        self, windows: Sequence[Ids], random: np.random.Generator, added: list[Ids]
    ) -> list[Ids]:
        """One to `MAX_WORDS` words put into each, those that lower its logit most."""
        if not windows:
            return []
        counts = random.integers(1, MAX_WORDS + 1, len(windows))
        drawn = [random.choice(self._words.added, n).astype(np.int32) for n in counts]
        places = [_place(len(ids), random) for ids in windows]
        gradient = self._gradient([*map(_inserted, windows, drawn, places)])
        row = np.repeat(np.arange(len(windows)), counts)
        column = np.concatenate([p + 1 + np.arange(n) for p, n in zip(places, counts, strict=True)])
        candidates = random.choice(self._words.added, _CANDIDATES)
        with torch.no_grad():
            table = self._model.words(torch.from_numpy(candidates).to(gradient.device))
            slots = gradient[torch.from_numpy(row), torch.from_numpy(column)]
            best = (slots.float() @ table.float().T).argmin(dim=1).cpu().numpy()
        chosen = np.split(candidates[best].astype(np.int32), np.cumsum(counts)[:-1])
        added += chosen
        return [*map(_inserted, windows, chosen, places)]

    def _with_runs(
        self,
        windows: Sequence[Ids],
        calm: Sequence[Ids],
        random: np.random.Generator,
        added: list[Ids],
    ) -> Sequence[Ids]:
        """A run of a harmless text put into each, the one of `RUN_DRAWS` that calms it most."""
        if not windows or not calm:
            return windows
        versions, runs = [], []
        for window in windows:
            place = _place(len(window), random)
            for _ in range(RUN_DRAWS):
                runs.append(_run(calm, random))
                versions.append(_inserted(window, runs[-1], place))
        with torch.no_grad():
            ids, real = self._collate(versions)
            logits = self._model.head(self._model.hidden(ids, real), real).float()
        best = logits.view(-1, RUN_DRAWS).argmin(dim=1).tolist()
        chosen = [row * RUN_DRAWS + draw for row, draw in enumerate(best)]
        added += [runs[i] for i in chosen]
        return [versions[i] for i in chosen]

    def _misspelt(self, windows: Sequence[Ids], random: np.random.Generator) -> list[Ids]:
        """Typos and synonyms for the words whose loss would lower the logit most."""
        if not windows:
            return []
        gradient = self._gradient(windows)
        with torch.no_grad():
            ids, _ = self._collate(windows)
            carried = (gradient * self._model.words(ids)).sum(dim=-1).float().cpu().numpy()
        return [
            self._rewritten(window, carried[row, 1 : len(window) + 1], random)
            for row, window in enumerate(windows)
        ]

    def _rewritten(self, window: Ids, order: Floats, random: np.random.Generator) -> Ids:
        """Versions for a share of the words of a window, those with the highest `order`."""
        budget = max(1, int(perturb.MAX_CHANGED_SHARE * len(window)))
        words = [i for i in np.argsort(-order) if int(window[i]) in self._words.rewritten]
        pieces = [window[i : i + 1] for i in range(len(window))]
        for i in words[:budget]:
            versions = self._words.rewritten[int(window[i])]
            pieces[i] = versions[int(random.integers(len(versions)))]
        return np.concatenate(pieces)

    def _gradient(self, windows: Sequence[Ids]) -> Tensor:
        """Of each window's logit by the embeddings of its tokens, [windows, tokens, width]."""
        ids, real = self._collate(windows)
        words = self._model.words(ids).detach().requires_grad_()
        x = self._model.embedding_norm(words + self._model.positions.weight[: ids.shape[1]])
        for layer in self._model.layers:
            x = layer(x, real[:, None, None, :])
        total = self._model.head(x, real).float().sum()
        gradient: Tensor = torch.autograd.grad(total, words)[0]
        return gradient


def _place(length: int, random: np.random.Generator) -> int:
    part = random.random()
    if part < _BEFORE:
        return 0
    return length if part < _BEFORE + _AFTER else int(random.integers(length + 1))


def _inserted(ids: Ids, added: Ids, place: int) -> Ids:
    return np.concatenate([ids[:place], added, ids[place:]])


def _run(calm: Sequence[Ids], random: np.random.Generator) -> Ids:
    ids = calm[int(random.integers(len(calm)))]
    length = min(len(ids), int(random.integers(4, MAX_RUN_TOKENS + 1)))
    start = int(random.integers(len(ids) - length + 1))
    return ids[start : start + length]
