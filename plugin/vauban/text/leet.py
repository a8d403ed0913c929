"""Leetspeak undone: "1gn0r3 7h3 rul35" is read as "ignore the rules".

A disguised word is replaced where its reading is a known English word, and any word, known or
not, where a large part of the text is written so. "1" and "!" are an "i" or an "l": as makes a
known word, else as English words are spelt.

Covers: 0 1 3 4 5 7 8 @ $ ! for letters, and 2 6 9 ( < + | where the rest of the text is leetspeak
and they make a known word; "1st", "0x1f", "mp3", "$name", "b2b" and hashes stay.
Does not cover: signs beyond these; a real number in a text of leetspeak may be read as a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache

from vauban.text.words import SHORT_WORDS, VOCABULARY, known_english, replace_words

_STROKE = "1"
_LETTERS = str.maketrans("034578@$!", "oeastbas1")
_LETTER_WORDS = frozenset({"a", "i"})
_CLITICS = frozenset({"d", "ll", "m", "re", "s", "t", "ve"})
_ENDINGS = ("s", "es", "d", "ed", "er", "ers", "ing", "ly")
_ENDING_SHAPES = ("s", "es", "d", "ed", "er", "ers", "ing", "iy")
_MIN_STEM_CHARS = 4
_MIN_SURE_CHARS = 5

_HINT = re.compile(r"[0134578@$!][A-Za-z]")
_WORD = re.compile(r"(?<![\w@$!])[A-Za-z0134578@$!]{1,24}(?![\w@${(])")
# Accented letters too, whose small form is one character; not the number of a list's item.
_LATIN = r"A-Za-z\u00c0-\u012f\u0131-\u024f\u1e00-\u1eff"
_ITEM = r"^[0-9]+[.)][ \t]"
_RUN = re.compile(rf"(?<![0-9])(?!{_ITEM})[{_LATIN}0134578@$!']+(?![0-9])", re.MULTILINE)
_RARE = re.compile(r"(?<![\w@$!(<+|])[A-Za-z0-9@$!(<+|]{2,24}(?![\w@$])")
_RARE_SIGN = re.compile("[269(<+|]")
_ANY_SIGN = re.compile("[^A-Za-z]")
_RARE_LETTERS = tuple(str.maketrans("29(<+|6", f"zgcct{_STROKE}{six}") for six in "gb")
_SIGN = re.compile("[013457@$!]")
_SIGN_IN_RUN = re.compile("[0134578@$!]")
_INSIDE = re.compile("[A-Za-z][013457]+[A-Za-z]")
_ORDINAL = re.compile("[0-9]*(?:1st|2nd|3rd|[0-9]th)", re.IGNORECASE)
_HEX_WORD = re.compile(r"(?:0[xX])?[0-9a-fA-F]+")
_SHARE = 0.2
_MIN_WORDS = 3


def _shape(word: str) -> str:
    """What "i", "l" and strokes have in common."""
    return word.replace("l", "i").replace(_STROKE, "i")


def leet_shape(word: str) -> str:
    """What a lower-case word and its disguises have in common; as long as `word`."""
    return _shape(word.translate(_LETTERS))


@cache
def _context_votes() -> Mapping[str, int]:
    """How many more "l" than "i" English words have between given neighbours.

    Keys are shapes: two letters before and two after, or one and one; "^" and "$" end a word.
    """
    votes: Counter[str] = Counter()
    for word in known_english():
        framed = f"^^{word}$$"
        shape = _shape(framed)
        for at in range(2, len(shape) - 2):
            if shape[at] == "i":
                vote = 1 if framed[at] == "l" else -1
                votes[shape[at - 2 : at] + shape[at + 1 : at + 3]] += vote
                votes[shape[at - 1] + shape[at + 1]] += vote
    return votes


def _spelt(word: str) -> str:
    """Every stroke the letter that English words have between such neighbours."""
    votes = _context_votes()
    shape = _shape(f"^^{word}$$")

    def letter(stroke: re.Match[str]) -> str:
        at = stroke.start() + 2
        wide = votes.get(shape[at - 2 : at] + shape[at + 1 : at + 3], 0)
        return "l" if (wide or votes.get(shape[at - 1] + shape[at + 1], 0)) > 0 else "i"

    return re.sub(_STROKE, letter, word)


@cache
def _words_of_shape() -> Mapping[str, list[str]]:
    """Known words, the likeliest first: needed by instructions, short, spelt as most words are."""
    found: dict[str, list[str]] = {}
    for words in (VOCABULARY, SHORT_WORDS, known_english() - VOCABULARY):
        for word in sorted(words, key=_is_spelt_unlike_most):
            found.setdefault(_shape(word), []).append(word)
    return found


def _is_spelt_unlike_most(word: str) -> bool:
    return _spelt(_shape(word).replace("i", _STROKE)) != word


def _known_reading(word: str) -> str | None:
    """A known word, or a known word with an ending, that `word` may be."""
    shape = _shape(word)
    stems = [(shape, "")]
    if shape.endswith(_ENDING_SHAPES):
        stems += [
            (shape.removesuffix(of), ending)
            for ending, of in zip(_ENDINGS, _ENDING_SHAPES, strict=True)
            if shape.endswith(of) and len(shape) - len(of) >= _MIN_STEM_CHARS
        ]
    for stem, ending in stems:
        for read in _words_of_shape().get(stem, ()):
            if all(a in (b, _STROKE) for a, b in zip(word, read, strict=False)):
                return read + ending
    return None


def _read_part(word: str) -> str:
    """The likeliest reading of a word without apostrophes; "!" around it may be signs."""
    bare = word.strip("!")
    start = word.index(bare)
    head, tail = word[:start], word[start + len(bare) :]
    splits = [("", head + bare, tail)]
    if tail:
        splits.append(("", head + bare + tail[0], tail[1:]))
    if head:
        splits.append((head, bare, tail))
    for before, middle, after in splits:
        read = _known_reading(middle.translate(_LETTERS))
        if read is not None:
            return before + read + after
    return _spelt((head + bare).translate(_LETTERS)) + tail


def _unleet(word: str) -> str:
    """The likeliest reading of `word`, in its letter case."""
    first, *others = word.lower().split("'")
    read = [_read_part(first)]
    for other in others:
        clitic = other.translate(_LETTERS).replace(_STROKE, "l")
        read.append(clitic if clitic in _CLITICS else _read_part(other))
    return _cased_like(word, "'".join(read))


def _leet_reading(word: str) -> str | None:
    """The reading of a disguised word; None for any other.

    Disguised is a digit inside one case's letters, or any disguise of a known word; "1st", "0x1f",
    "mp3", "$name" and camelCase are not.
    """
    bare = word.rstrip("!")
    if not _SIGN.search(bare) or not any(map(str.isalpha, bare)) or _ORDINAL.fullmatch(bare):
        return None
    read = _unleet(word)
    if len(bare) > 2 and read.rstrip("!").lower() in known_english():
        return read
    return read if _has_digit_inside(bare) and not _HEX_WORD.fullmatch(bare) else None


def _rare_reading(word: str) -> str | None:
    """The known word that `word` is with its rarer signs read, too."""
    # A bracket that begins a word may be one.
    if not _RARE_SIGN.search(word) or not _ANY_SIGN.search(word.lstrip("(<")):
        return None
    if not any(map(str.isalpha, word)):
        return None
    for letters in _RARE_LETTERS:
        read = _known_reading(word.lower().translate(letters).translate(_LETTERS))
        if read is not None:
            return _cased_like(word, read)
    return None


def _cased_like(word: str, read: str) -> str:
    """`read`, as long as `word`, in its letter case."""
    if word.isupper():
        return read.upper()
    return "".join(b.upper() if a.isupper() else b for a, b in zip(word, read, strict=True))


def _has_digit_inside(word: str) -> bool:
    """Between letters of one case."""
    one_case = word.islower() or word.isupper() or word[1:].islower()
    return one_case and _INSIDE.search(word) is not None


def _is_sure(word: str, read: str) -> bool:
    """Whether a disguised word in plain text, read as `read`, can't be the name of something."""
    if read in VOCABULARY:
        return True
    long = len(read) >= _MIN_SURE_CHARS and read in known_english()
    return long and _has_digit_inside(word)


def _is_word(written: str, read: str) -> bool:
    if any(map(str.isalpha, written)) or read.lower() in _LETTER_WORDS:
        return True
    first, *others = read.lower().split("'")
    known = first in known_english() or first in SHORT_WORDS
    # Of words in reverse only those that sentences are made of: "07" may be a number.
    backwards = len(first) > 1 and first[::-1] in VOCABULARY
    return (known or backwards) and all(other in _CLITICS for other in others)


def undo_leet(text: str) -> tuple[str, int]:
    """Leetspeak undone; returns the text and the number of words changed."""
    if _HINT.search(text) is None:
        return text, 0
    counts = Counter(_WORD.findall(text))
    found = {word: _leet_reading(word) for word in counts}
    readings = {word: read for word, read in found.items() if read is not None}
    if not readings:
        return text, 0
    rare = {word: _rare_reading(word) for word in set(_RARE.findall(text))}
    rarely = {word: read for word, read in rare.items() if read is not None}
    disguised = sum(counts[word] for word in readings) + len(rarely)
    lettered = sum(count for word, count in counts.items() if any(map(str.isalpha, word)))
    if disguised < max(_MIN_WORDS, _SHARE * lettered):
        sure = {word: read for word, read in readings.items() if _is_sure(word, read.lower())}
        return replace_words(_WORD, text, sure) if sure else (text, 0)
    # So much of it means that the others ("m3", "15", parts of names in code) are words too.
    text, before = replace_words(_RARE, text, rarely)
    others = {word for word in _RUN.findall(text) if _SIGN_IN_RUN.search(word)}
    readings |= {word: _unleet(word) for word in others - readings.keys()}
    known = {word: read for word, read in readings.items() if _is_word(word, read)}
    text, count = replace_words(_RUN, text, known)
    return text, before + count
