"""Is this decoded string something a reader would call text?

Random bytes fail: they are no UTF-8, or full of symbols. Hashes, keys, images and compressed data
are therefore never shown to the detector.
"""

from __future__ import annotations

import re

from vauban.text.words import VOCABULARY

_MIN_CHARS = 3
_MIN_LETTERS = 0.6
_MIN_READABLE = 0.85
_MAX_BAD = 0.1  # a few stray bytes must not hide the rest; random bytes have far more
_SAMPLE_CHARS = 4096
_SAMPLE_BYTES = 4096
_SURE_CHARS = 16
_MIN_PRINTABLE = 0.95
# Anything beyond ASCII that was valid UTF-8 is taken for a letter: random bytes hardly ever are.
_LETTER = re.compile(r"[A-Za-z \x80-\U0010ffff]")
_READABLE = re.compile(r"[\w\s.,;:!?'\"()/<>{}\[\]=@#&*+|\x80-\U0010ffff-]")
_PRINTABLE = re.compile(r"[\s!-~]", re.ASCII)
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
_ENGLISH = re.compile(r"[a-z]{2,}")


def plausible(text: str) -> bool:
    """Whether `text` reads as language or code; judged by its first 4,096 characters."""
    sample = text.strip()[:_SAMPLE_CHARS]
    if len(sample) < _MIN_CHARS or len(_BAD.findall(sample)) > _MAX_BAD * len(sample):
        return False
    # Sixteen printable bytes are no accident, whatever they say: another encoding, for example.
    if len(sample) >= _SURE_CHARS:
        printable = len(_PRINTABLE.findall(sample))
        if printable >= _MIN_PRINTABLE * len(sample):
            return True
    letters = len(_LETTER.findall(sample))
    readable = len(_READABLE.findall(sample))
    return letters >= _MIN_LETTERS * len(sample) and readable >= _MIN_READABLE * len(sample)


def as_text(data: bytes) -> str | None:
    """`data` as text if it is UTF-8 (or UTF-16 with ASCII in it) and plausible, else None."""
    half = len(data) // 2
    encoding = "utf-8"
    if half >= 4 and data[1::2].count(0) > 0.9 * half:
        encoding = "utf-16-le"
    elif half >= 4 and data[::2].count(0) > 0.9 * half:
        encoding = "utf-16-be"
    # Random bytes show at the head; a long image is not decoded to its end.
    head = data[:_SAMPLE_BYTES]
    if len(data) > len(head) and not plausible(head.decode(encoding, "replace")):
        return None
    text = data.decode(encoding, "replace")
    return _BAD.sub("", text) if plausible(text) else None


def bits_to_bytes(bits: str, width: int) -> bytes:
    """The low byte of every `width` binary digits; a rest at the end is dropped."""
    groups = (bits[at : at + width] for at in range(0, len(bits) - width + 1, width))
    return bytes(int(group, 2) & 0xFF for group in groups)


def known_words(text: str) -> int:
    """How many different words of the vocabulary `text` has."""
    return len(VOCABULARY.intersection(_ENGLISH.findall(text.lower())))
