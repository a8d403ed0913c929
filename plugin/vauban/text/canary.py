"""Marks in the operator's text that nobody has a reason to say: who says one has read the text.

They are found in the ASCII letters and digits of what is said, in any case and with anything
between them, so spaced and punctuated ones too; also backwards, in base64, hex or rot13.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Iterable
from typing import Final

MIN_CHARS: Final = 12
"""Letters and digits that a canary needs, so that none is found by chance."""
_FOLDED_CHARS: Final = 512
_SMALL = bytes(n + 32 if chr(n).isupper() and n < 128 else n for n in range(256))
_NOT_PLAIN = bytes(n for n in range(256) if n > 127 or not chr(n).isalnum())


def folded(text: str) -> str:
    """The ASCII letters and digits of a text, in small letters."""
    return text.encode("ascii", "ignore").translate(_SMALL, _NOT_PLAIN).decode("ascii")


def spellings(canaries: Iterable[str]) -> tuple[str, ...]:
    """What to look for in folded text.

    :raises ValueError: a canary has too few letters and digits.
    """
    found: dict[str, None] = {}
    for canary in canaries:
        plain = folded(canary)
        if len(plain) < MIN_CHARS:
            raise ValueError(f"a canary needs at least {MIN_CHARS} letters and digits")
        raw = canary.encode()
        spelled = [plain, plain[::-1], raw.hex(), folded(codecs.encode(canary, "rot13"))]
        for text in (raw, raw[::-1]):
            spelled += [folded(_core(text, shift)) for shift in range(3)]
        found |= {spelling: None for spelling in spelled if len(spelling) >= MIN_CHARS}
    return tuple(found)


def ends_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Finds the last three characters of any of them: it is quick to see that none ends."""
    return re.compile("|".join(sorted({spelling[-3:] for spelling in spellings})))


class Listener:
    """Follows one text, and hears the canaries in it.

    :param ends: see `ends_of`.
    """

    def __init__(self, spellings: tuple[str, ...], ends: re.Pattern[str]) -> None:
        self._spellings = spellings
        self._ends = ends
        self._folded = ""
        self._kept = max(_FOLDED_CHARS, *map(len, spellings))

    def stands_behind(self, other: Listener, text: str) -> None:
        """What another has read, and this text, come before."""
        self._folded = (other._folded + folded(text))[-self._kept :]

    def passes_over(self, text: str) -> bool:
        """Whether no canary is in a text, which then is read."""
        heard = self._folded + folded(text)
        if any(spelling in heard for spelling in self._spellings):
            return False
        self._folded = heard[-self._kept :]
        return True

    def hears(self, buffer: str, a: int, b: int) -> int | None:
        """Read the word `buffer[a:b]`. Where in the buffer the canary begins that ends in it; 0 if
        that is not kept any more."""
        if len(self._folded) > 2 * self._kept:
            self._folded = self._folded[-self._kept :]
        word = buffer[a:b]  # of ASCII
        new = word.lower() if word.isalnum() else folded(word)
        last = max(0, len(self._folded) - 2)
        self._folded += new
        if self._ends.search(self._folded, last) is None:
            return None
        for spelling in self._spellings:
            at = self._folded.find(spelling, max(0, len(self._folded) - len(new) - len(spelling)))
            if at < 0:
                continue
            first, left = b, len(self._folded) - at
            while left and first:
                first -= 1
                left -= buffer[first].isascii() and buffer[first].isalnum()
            self._folded = ""
            return first
        return None


def _core(raw: bytes, shift: int) -> str:
    """The base64 digits that depend on `raw` alone when `shift` bytes stand before it."""
    digits = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
    cut_off = (len(raw) + shift) % 3 != 0  # the last digit also depends on what follows
    return digits[(0, 2, 3)[shift] : len(digits) - cut_off]
