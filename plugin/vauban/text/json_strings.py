"""JSON that is being written: takes text out of it, so that what remains is still JSON, and writes
characters that need no escape without one."""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = re.compile(
    r"\\(?:u[0-9a-fA-F]{4}|[^u]|(?P<broken>u[0-9a-fA-F]{0,3}(?![0-9a-fA-F]|\Z)))", re.DOTALL
)
_BEGUN: Final = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_IN_STRING: Final = re.compile(r'[^"\\]+')
_BETWEEN: Final = re.compile(r"[{}\[\]:,\s]+")
_ESCAPED: Final = frozenset('"\\/bfnrtu')
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_NUMBER: Final = frozenset("0123456789+-.eE")
_LITERALS: Final = frozenset(
    word[:n]
    for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity")
    for n in range(1, len(word) + 1)
)


class JsonStrings:
    """Follows JSON text and knows whether it is inside a string.

    From where it is no JSON on (a broken escape, or a word outside of strings) all is taken for
    text: nothing has to stay there.
    """

    def __init__(self) -> None:
        self._inside = False
        self._broken = False
        self._escape = 0  # characters that an escape still needs
        self._is_first = False
        self._escape_goes = False
        self._literal = ""  # a word or number outside of strings
        self._mark = ""  # to be said where the first character goes

    def follow(self, text: str) -> None:
        """This part stays."""
        self._mark = "" if text else self._mark
        at, end = 0, len(text)
        while at < end and not self._broken:
            if not self._escape:
                found = (_IN_STRING if self._inside else _BETWEEN).match(text, at)
                if found is not None:
                    self._literal, at = "", found.end()
                    continue
            self._step(text[at], goes=False)
            at += 1

    def drop(self, text: str, mark: str) -> str:
        """This part goes, but for quotes, what is outside of strings, and the rest of an escape
        that has begun; `mark` takes the place of the first character that goes, which may come
        with the next part (whose mark is empty)."""
        self._mark = mark or self._mark
        kept: list[str] = []
        for letter in text:
            if self._step(letter, goes=True):
                kept.append(letter)
            else:
                kept.append(self._mark)
                self._mark = ""
        return "".join(kept)

    def _step(self, letter: str, *, goes: bool) -> bool:
        """Whether a character has to stay."""
        if self._broken:
            return False
        if self._escape:
            self._broken = letter not in (_ESCAPED if self._is_first else _HEX)
            self._escape = 4 if self._is_first and letter == "u" else self._escape - 1
            self._is_first = False
            return not (self._broken or self._escape_goes)
        if letter == '"':
            self._inside, self._literal = not self._inside, ""
            return True
        if self._inside:
            if letter == "\\":
                self._escape, self._is_first, self._escape_goes = 1, True, goes
            return False
        self._broken = not self._goes_on(letter)
        return not self._broken

    def _goes_on(self, letter: str) -> bool:
        """Whether this can stand next outside of strings."""
        if _BETWEEN.match(letter):
            self._literal = ""
            return True
        self._literal += letter
        if self._literal in _LITERALS:
            return True
        is_number = self._literal[0] in "-0123456789" and letter in _NUMBER
        self._literal = "0"  # of a number, only that it is one
        return is_number


class PlainEscapes:
    """Escapes of printable ASCII as the characters that they stand for, so that `\\u0041` is read
    as the letter. Quotes and backslashes stay as they are, and so does the escape right behind a
    broken one: what is no JSON must not become some.

    `rest`: the beginning of an escape, which is not complete.
    """

    def __init__(self) -> None:
        self.rest = ""
        self._broken_before = False  # what is kept stands behind a broken escape

    def feed(self, text: str) -> str:
        """The same JSON, as far as it is certain."""
        if not (self.rest or "\\" in text):
            return text
        written, last, read = self.rest + text, 0, 0
        broken_to = 0 if self._broken_before else -1
        out: list[str] = []
        for found in _ESCAPE.finditer(written):
            read = found.end()
            if found["broken"] is not None:
                broken_to = read
            elif found.start() != broken_to:
                out += (written[last : found.start()], _plain(found.group()))
                last = read
        begun = _BEGUN.search(written, read)
        self._broken_before = begun is not None and begun.start() == broken_to
        self.rest = begun.group() if begun is not None else ""
        return "".join([*out, written[last : len(written) - len(self.rest)]])


def _plain(escape: str) -> str:
    if len(escape) == 2:
        return "/" if escape == "\\/" else escape
    letter = chr(int(escape[2:], 16))
    return letter if " " <= letter <= "~" and letter not in '"\\' else escape
