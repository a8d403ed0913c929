"""The moves of the adaptive attacks: what each search changes, in which order.

`ATTACKS` has them by name, each with its variants. A search starts from a detected text, asks for
scores (of requests; most are one user turn), and stops at the first version below the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from vauban.offline import as_user
from vauban.training import perturb
from vauban.training.adaptive import Attack, NewSearch, Search
from vauban.training.perturb import MAX_ADDED, Perturbation
from vauban.training.perturb_words import HARMLESS_SENTENCES, HARMLESS_WORDS, SYNONYMS
from vauban.types import Origin, Segment

DRAWS = 3  # random disguises tried, one after the other
MAX_PROBED_WORDS = 40  # a longer text: so many of its words, drawn at random
MIN_TYPO_CHARS = 4
PIECES = (2, 3, 4, 5)
# In words. A window has 128 tokens and starts 86 after the one before: the walk pushes the text
# over every place of a border, in steps of about 12 tokens.
OFFSETS = tuple(range(0, 160, 10))
AFTER_WORDS = 60
DOCUMENT_WORDS = 1200
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def additions(pieces: Sequence[str], place: Callable[[str, str], str]) -> NewSearch:
    """Greedy: in every step the piece that lowers the score most, up to five pieces.

    All pieces are scored in each step, so a step costs `len(pieces)` queries. Source: the
    published attack on vLLM's semantic router (vllm-project/semantic-router issue 3174).
    """

    def search(text: str, threshold: float, _: np.random.Generator) -> Search:
        for changes in range(1, MAX_ADDED + 1):
            candidates = [place(text, piece) for piece in pieces]
            scores = yield [as_user(candidate) for candidate in candidates]
            best = int(scores.argmin())
            if scores[best] < threshold:
                return changes
            text = candidates[best]
        return None

    return search


def replacements(options: Callable[[str, np.random.Generator], Sequence[str]]) -> NewSearch:
    """Greedy replacement of words, those first whose deletion lowers the score most.

    At most 15% of the words are changed; an option is kept when it lowers the score. Source:
    TextFooler (arXiv 1907.11932, algorithm 1), without its sentence encoder.

    :param options: what may stand for a word; none for a word that is to stay.
    """

    def search(text: str, threshold: float, random: np.random.Generator) -> Search:
        spans = [(a, b) for a, b in perturb.word_spans(text) if options(text[a:b], random)]
        if not spans:
            return None
        if len(spans) > MAX_PROBED_WORDS:
            chosen = random.permutation(len(spans))[:MAX_PROBED_WORDS]
            spans = [spans[i] for i in sorted(chosen)]
        without = [text[:a] + text[b:] for a, b in spans]
        scores = yield [as_user(version) for version in (text, *without)]
        lowest = scores[0]
        edits: dict[tuple[int, int], str] = {}
        for index in np.argsort(scores[1:], kind="stable"):
            a, b = span = spans[index]
            words = options(text[a:b], random)
            scores = yield [as_user(_edited(text, {**edits, span: word})) for word in words]
            best = int(scores.argmin())
            if scores[best] < threshold:
                return len(edits) + 1
            if scores[best] < lowest:
                lowest, edits[span] = scores[best], words[best]
                if len(edits) == perturb.edit_budget(text):
                    return None
        return None

    return search


def _edited(text: str, edits: Mapping[tuple[int, int], str]) -> str:
    for (a, b), word in sorted(edits.items(), reverse=True):
        text = text[:a] + word + text[b:]
    return text


def synonym_options(word: str, _: np.random.Generator) -> Sequence[str]:
    return [perturb.cased_like(other, word) for other in SYNONYMS.get(word.lower(), ())]


def typo_options(word: str, random: np.random.Generator) -> Sequence[str]:
    """One edit of each kind."""
    if len(word) < MIN_TYPO_CHARS:
        return ()
    edited = [perturb.typo(word, kind, random) for kind in perturb.TYPO_KINDS]
    return [other for other in edited if other != word]


def disguises(change: Perturbation, draws: int = DRAWS) -> NewSearch:
    """Random draws of one perturbation; a change is a draw."""

    def search(text: str, threshold: float, random: np.random.Generator) -> Search:
        for draw in range(1, draws + 1):
            scores = yield [as_user(change(text, random))]
            if scores[0] < threshold:
                return draw
        return None

    return search


def splits(origin: Origin) -> NewSearch:
    """The text over two to five segments of one request; a change is a cut."""

    def search(text: str, threshold: float, random: np.random.Generator) -> Search:
        for pieces in PIECES:
            parts = perturb.split_text(text, pieces, random)
            if len(parts) < pieces:
                return None
            scores = yield [tuple(Segment(part, origin) for part in parts)]
            if scores[0] < threshold:
                return pieces - 1
        return None

    return search


def window_borders(text: str, threshold: float, random: np.random.Generator) -> Search:
    """Harmless words before, more and more, and some after; a change is a word."""
    before = _harmless(max(OFFSETS), random)
    after = " ".join(_harmless(AFTER_WORDS, random))
    scores = yield [as_user(" ".join([*before[:n], text, after])) for n in OFFSETS]
    below = np.flatnonzero(scores < threshold)
    return OFFSETS[below[0]] + AFTER_WORDS if len(below) else None


def long_document(text: str, threshold: float, random: np.random.Generator) -> Search:
    """A harmless document around it, at five depths; a change is a word."""
    words = _harmless(DOCUMENT_WORDS, random)
    cuts = [int(depth * len(words)) for depth in DEPTHS]
    scores = yield [as_user(" ".join([*words[:n], text, *words[n:]])) for n in cuts]
    return DOCUMENT_WORDS if (scores < threshold).any() else None


def _harmless(count: int, random: np.random.Generator) -> list[str]:
    shortest = min(len(sentence.split()) for sentence in HARMLESS_SENTENCES)
    return perturb.harmless_sentences(random, count // shortest + 1).split()[:count]


def _after(text: str, piece: str) -> str:
    return f"{text} {piece}"


def _before(text: str, piece: str) -> str:
    return f"{piece} {text}"


def _append() -> tuple[Attack, ...]:
    return tuple(
        Attack("append", f"{unit} {where}", unit, additions(pieces, place), curve=MAX_ADDED)
        for unit, pieces in (("words", HARMLESS_WORDS), ("sentences", HARMLESS_SENTENCES))
        for where, place in (("after", _after), ("before", _before))
    )


def _characters() -> tuple[Attack, ...]:
    covered = tuple(
        Attack("chars", name, "draws", disguises(change), curve=DRAWS)
        for name, change in perturb.CHARACTERS.items()
    )
    return covered + tuple(replace(attack, normalised=False) for attack in covered)


def _encodings() -> tuple[Attack, ...]:
    attacks = []
    for name, encode in perturb.ENCODERS.items():
        for variant, change, draws in (
            (name, _bare(encode), 1),
            (f"{name}, asked to decode", _asked(name, encode), DRAWS),
        ):
            attacks.append(
                Attack("encodings", variant, "draws", disguises(change, draws), curve=draws)
            )
    return tuple(attacks)


def _bare(encode: Callable[[str], str]) -> Perturbation:
    return lambda text, _: encode(text)


def _asked(name: str, encode: Callable[[str], str]) -> Perturbation:
    return lambda text, random: perturb.ask_to_decode(encode(text), name, random)


ATTACKS: Mapping[str, tuple[Attack, ...]] = MappingProxyType(
    {
        "append": _append(),
        "synonyms": (Attack("synonyms", "words", "words", replacements(synonym_options), curve=5),),
        "typos": (Attack("typos", "words", "words", replacements(typo_options), curve=5),),
        "chars": _characters(),
        "encodings": _encodings(),
        "split": (
            Attack("split", "user turns", "cuts", splits(Origin.USER), curve=max(PIECES) - 1),
            Attack("split", "tool results", "cuts", splits(Origin.TOOL), curve=max(PIECES) - 1),
        ),
        "padding": (
            Attack("padding", "window borders", "words", window_borders),
            Attack("padding", "long document", "words", long_document),
        ),
    }
)
