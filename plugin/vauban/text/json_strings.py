"""JSON that is being written: takes text out of it, so that what remains is still JSON, and writes
characters that need no escape without one."""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = re.compile(
    r"\\(?:u[0-9a-fA-F]{4}|[^u]|(?P<broken>u[0-9a-fA-F]{0,3}(?![0-9a-fA-F]|\Z)))", re.DOTALL
)
_BEGUN: Final = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")


class JsonStrings:
    """Follows JSON text and knows whether it is inside a string."""

    def __init__(self) -> None:
        self._inside = False
        self._escape = 0  # characters that an escape still needs
        self._is_first = False
        self._escape_goes = False

    def follow(self, text: str) -> None:
        """This part stays."""
        for letter in text:
            self._step(letter, goes=False)

    def drop(self, text: str, mark: str) -> str:
        """This part goes, but for quotes, what is outside of strings, and the rest of an escape
        that has begun; `mark` takes the place of the first character that goes."""
        kept: list[str] = []
        for letter in text:
            if self._step(letter, goes=True):
                kept.append(letter)
            else:
                kept.append(mark)
                mark = ""
        return "".join(kept)

    def _step(self, letter: str, *, goes: bool) -> bool:
        """Whether a character has to stay."""
        if self._escape:
            self._escape = 4 if self._is_first and letter == "u" else self._escape - 1
            self._is_first = False
            return not self._escape_goes
        if letter == '"':
            self._inside = not self._inside
            return True
        if letter == "\\" and self._inside:
            self._escape, self._is_first, self._escape_goes = 1, True, goes
        return not self._inside


class PlainEscapes:
    """Escapes of printable ASCII as the characters that they stand for, so that `\\u0041` is read
    as the letter. Quotes and backslashes stay as they are, and so does all that follows a broken
    escape: it is no JSON, and must not become some.

    `rest`: the beginning of an escape, which is not complete.
    """

    def __init__(self) -> None:
        self.rest = ""
        self._broken = False

    def feed(self, text: str) -> str:
        """The same JSON, as far as it is certain."""
        if self._broken or not (self.rest or "\\" in text):
            return text
        written, self.rest, last = self.rest + text, "", 0
        out: list[str] = []
        for found in _ESCAPE.finditer(written):
            if found["broken"] is not None:
                self._broken = True
                return "".join([*out, written[last:]])
            out += (written[last : found.start()], _plain(found.group()))
            last = found.end()
        begun = _BEGUN.search(written, last)
        if begun is not None:
            self.rest = begun.group()
        return "".join([*out, written[last : len(written) - len(self.rest)]])


def _plain(escape: str) -> str:
    if len(escape) == 2:
        return "/" if escape == "\\/" else escape
    letter = chr(int(escape[2:], 16))
    return letter if " " <= letter <= "~" and letter not in '"\\' else escape
