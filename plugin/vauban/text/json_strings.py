"""Takes text out of JSON that is being written, so that what remains is still JSON."""

from __future__ import annotations


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
