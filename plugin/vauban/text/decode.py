"""Encoded and disguised spans in a text, decoded: one string per encoding.

All spans of one encoding are joined, so that a message cut into pieces is read in one go and a
page full of them stays one segment. A span counts only if it decodes to plausible text.

Covers: base64 and base32 (also wrapped, word by word, UTF-16), hex (plain, spaced, 0x), decimal
ASCII codes, binary octets, Morse, escapes (percent, quoted-printable, HTML entities, backslash x,
u, U, octal), rot13 and reversed text. Does not cover: encryption, compression, other Caesar
shifts, ascii85, and languages outside the word list for rot13 and reversal.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vauban.text import encodings
from vauban.text.words import VOCABULARY


class Decoded(NamedTuple):
    """What one encoding hid in a text, and in how many places."""

    kind: str
    text: str
    spans: int


_PIECE = re.compile(r"[^.!?;:\n\"“”()\[\]{}<>|]+")
_TOKEN = re.compile(r"[a-z]{2,}")
_MIN_HITS = 2


# What a word of the vocabulary may turn into and still be a word.
_OTHER_WORDS = """
saw ton wed raw era arc war net eon nos mid tub ah err nag sag sin ray nun gel fur live evil god dog
reed pay won tip tops sloop deer rail sue der red dna lla ere ore rue erg yam may sen nes sal las
led del los sol nib gab gas snap part trap emit
"""


def _disguises(change: Callable[[str], str]) -> frozenset[str]:
    """The vocabulary changed, without what is then a word again ("was" and "saw")."""
    words = VOCABULARY.union(_OTHER_WORDS.split())
    return frozenset(change(word) for word in VOCABULARY if len(word) > 2) - words


_ROT13_WORDS = _disguises(lambda word: codecs.encode(word, "rot13"))
_REVERSED_WORDS = _disguises(lambda word: word[::-1])


def _disguised_spans(text: str, disguised: frozenset[str]) -> Iterator[str]:
    """Runs of clauses in which disguised words outnumber plain ones."""
    start = end = hits = 0
    for piece in _PIECE.finditer(text):
        words = _TOKEN.findall(piece.group().lower())
        odd = sum(word in disguised for word in words)
        plain = sum(word in VOCABULARY for word in words)
        if odd > plain:
            start = start if hits else piece.start()
            end = piece.end()
            hits += odd
        elif plain and hits:
            if hits >= _MIN_HITS:
                yield text[start:end]
            hits = 0
    if hits >= _MIN_HITS:
        yield text[start:end]


def _rot13(text: str) -> Iterator[str]:
    for span in _disguised_spans(text, _ROT13_WORDS):
        yield codecs.encode(span, "rot13")


def _reversed(text: str) -> Iterator[str]:
    for span in _disguised_spans(text, _REVERSED_WORDS):
        # Reversed as a whole, punctuation stands before words; reversed word by word, after.
        before, after = (len(re.findall(p, span)) for p in (r"\s[.,!?]\w", r"\w[.,!?]\s"))
        readings = [span[::-1]] if before >= after else []
        if after >= before:
            readings.append(" ".join(word[::-1] for word in span.split()))
        yield "\n".join(readings)


_DIGITS = frozenset("0123456789")


def _decoders(text: str) -> Iterator[tuple[str, Callable[[str], Iterator[str]]]]:
    """The decoders whose traces `text` has; plain prose ends here with none."""
    chars = frozenset(text)
    yield "base64", encodings.base64_spans
    if chars & _DIGITS:
        yield "hex", encodings.hex_spans
        yield "base32", encodings.base32_spans
        if "1" in chars:
            yield "decimal", encodings.decimal_spans
            yield "binary", encodings.binary_spans
    if chars & set("%&\\="):
        yield "escape", encodings.escapes_spans
    if chars & set(".·•∙⋅") and chars & set("-−–—_"):
        yield "morse", encodings.morse_spans
    words = frozenset(text.lower().split())
    if len(words & _ROT13_WORDS) >= _MIN_HITS:
        yield "rot13", _rot13
    if len(words & _REVERSED_WORDS) >= _MIN_HITS:
        yield "reversed", _reversed


def decode_spans(text: str) -> Iterator[Decoded]:
    """What is encoded in `text`, at most one item per encoding, one level deep."""
    for kind, decoder in _decoders(text):
        spans = [span for span in decoder(text) if span.strip()]
        if spans:
            # Single words belong together; longer messages stand on their own.
            glue = " " if all(len(a) < 24 for a in spans) else "\n"
            yield Decoded(kind, glue.join(spans), len(spans))
