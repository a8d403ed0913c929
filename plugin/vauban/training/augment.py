"""Joining and cutting texts: attacks into documents, harmless words around attacks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_BOUNDARY = re.compile(r"[.!?;:}]\s+|\n+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_JOINS = ("\n", "\n\n", " ", " ", "\n---\n")
_TURNS = ("\nUser: ", "\n\n", "\nHuman: ", "\n> ", "\n- ")


def crop(text: str, length_chars: int, random: np.random.Generator) -> str:
    """A random run of about `length_chars` characters that begins and ends at a space."""
    if len(text) <= length_chars:
        return text
    start = int(random.integers(len(text) - length_chars + 1))
    if start:
        space = text.find(" ", start, start + 24)
        start = space + 1 if space >= 0 else start
    end = min(len(text), start + length_chars)
    space = text.rfind(" ", max(start + 1, end - 24), end)
    return text[start : space if end < len(text) and space > 0 else end]


def splice(inner: str, host: str, random: np.random.Generator) -> str:
    """`inner` in `host` after a sentence or line of it, at either end where there is none."""
    places = [match.end() for match in _BOUNDARY.finditer(host)] + [0, len(host)]
    place = places[int(random.integers(len(places)))]
    join = _JOINS[int(random.integers(len(_JOINS)))]
    parts = (part for part in (host[:place].rstrip(), inner, host[place:].lstrip()) if part)
    return join.join(parts)


def patchwork(texts: Sequence[str], random: np.random.Generator) -> str:
    """A sentence of each text in a row: the topic hops, as where an order is planted."""
    sentences = []
    for text in texts:
        found = [part.strip() for part in _SENTENCE.split(text) if len(part.strip()) > 12]
        if found:
            sentences.append(crop(found[int(random.integers(len(found)))], 220, random))
    return ("\n" if random.random() < 0.5 else " ").join(sentences)


def surround(text: str, harmless: Sequence[str], random: np.random.Generator) -> str:
    """One to six words, or one sentence, of a harmless text before or after `text`."""
    other = harmless[int(random.integers(len(harmless)))]
    if random.random() < 0.6:
        words = other.split()
        picked = random.permutation(len(words))[: int(random.integers(1, 7))]
        extra = " ".join(words[i] for i in picked)
    else:
        extra = crop(other, int(random.integers(30, 160)), random)
    return f"{text} {extra}" if random.random() < 0.75 else f"{extra} {text}"


def over_turns(text: str, random: np.random.Generator) -> str:
    """`text` cut between words into two to five turns of a conversation."""
    words = text.split(" ")
    if len(words) < 4:
        return text
    cuts = sorted(random.permutation(len(words) - 1)[: int(random.integers(1, 5))] + 1)
    turn = _TURNS[int(random.integers(len(_TURNS)))]
    pieces = np.split(np.array(words, dtype=object), cuts)
    return turn.join(" ".join(piece) for piece in pieces)


def gibberish(vocabulary: Sequence[str], random: np.random.Generator) -> str:
    """What an optimiser that searches token by token leaves behind: random pieces, glued."""
    glue = ("", "", " ", " ", " ", "\\", "(", "!", '"', "..", "{", "]( ")
    pieces = []
    for _ in range(int(random.integers(8, 28))):
        piece = vocabulary[int(random.integers(len(vocabulary)))]
        if random.random() < 0.15:
            piece = piece.capitalize()
        pieces.append(piece + glue[int(random.integers(len(glue)))])
    return "".join(pieces).strip()
