"""Where addresses stand in Markdown and HTML: behind `](` and `]:`, and in the values of a tag.

There a renderer undoes escapes and references to characters (`https&#58;//`, `https\\://`), and
a browser also line breaks and backslashes; so it is undone here to see what the address is. Read
are units and the gaps between them, as in `passages.py`.
"""

from __future__ import annotations

import html
import re
from typing import Final

READ_CHARS: Final = 104
"""So much of a destination is read: what is written longer names no other host by its beginning."""
_MAX_PICTURE_CHARS: Final = 65_536
"""The words of a picture that are longer are taken to be of none."""
_END = re.compile(r"[\s)]")
_SPACE = re.compile(r"\s")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_ANY_ESCAPED = re.compile(r"\\.", re.DOTALL)
_CSS_ESCAPED = re.compile(r"\\(?:([0-9a-fA-F]{1,6})\s?|(.))", re.DOTALL)
_LONG_REFERENCE = re.compile(r"&#[xX]?0{3,}")
_BREAKS = re.compile(r"[\t\r\n]")
_DISGUISED = re.compile(r"[&\\\t\r\n]")
_ANOTHER_HOST: Final = "//unknown"


class Target:
    """The destination of a link or picture of Markdown.

    `kind`: what the next word belongs to: `target` (behind `](`), `definition` (behind `]:`), or
    nothing. `begins`: it began with the last word, not with a sign before that; `offset`: so many
    characters of the word do not belong to it.
    """

    def __init__(self) -> None:
        self.kind = ""
        self.begins = False
        self.offset = 0
        self._raw: str | None = None
        self._words = 0
        self._bracket = False  # the last character was `]`

    @property
    def is_first(self) -> bool:
        """The last word is the first one of it."""
        return self._words == 1

    @property
    def may_begin(self) -> bool:
        """The next unit belongs to one, or may."""
        return self._bracket or bool(self.kind)

    @property
    def _goes_on(self) -> bool:
        return self._raw is not None and len(self._raw) < READ_CHARS

    def gap(self, text: str) -> None:
        """Characters between two units."""
        joined = "]" + text if self._bracket else text
        _, begins, raw = joined.rpartition("](")
        raw = raw.lstrip()
        self._bracket = text.endswith("]")
        if begins and _END.search(raw) is None:  # also inside another
            self._end("target")
            self._raw = raw[:READ_CHARS] or None
        elif self.kind:
            rest = text.lstrip() if self._raw is None else text
            if _END.search(rest) is not None:
                self._end()
            elif rest:
                self._raw = ((self._raw or "") + rest)[:READ_CHARS]

    def _end(self, kind: str = "") -> None:
        self.kind, self._raw, self._words = kind, None, 0

    def skip(self, text: str) -> None:
        """As the gaps and units of a text of which nothing has to be read."""
        last = text.rstrip()[-2:]
        self._end("target" if last == "](" else "definition" if last == "]:" else "")
        self._bracket = text.endswith("]")

    def word(self, word: str) -> str | None:
        """The next word; what the destination is so far, if it is written in disguise."""
        self.offset = 0
        if self._bracket and word[0] == ":":  # also inside another
            self._end("definition")
            self.offset, word = 1, word[1:]
        elif self._raw is not None and not self._goes_on:
            self._end()
        self._bracket = self.begins = False
        if not (self.kind and word):
            return None
        self._words += 1
        self.begins = self._raw is None
        self._raw = (self._raw or "") + word
        raw = self._raw[:READ_CHARS]
        if "&" not in raw and "\\" not in raw:
            return None
        return undisguised(_ESCAPED.sub(r"\1", raw))

    def sign(self, sign: str) -> None:
        """The next unit, which is no word."""
        self._bracket = self.begins = False
        if (
            sign[0] in ">`"
            or sign == "!["
            or (self._raw is not None and (sign == "<" or not self._goes_on))
        ):
            self._end()
        elif self.kind and sign != "<":
            self._raw = (self._raw or "") + sign


class Picture:
    """The words of a picture of Markdown, which begin with `![` at `start`, or are none."""

    def __init__(self) -> None:
        self.start: int | None = None
        # Brackets that are open: all, and without those in spans of code, in tags, in either.
        self._open = [0, 0, 0, 0]
        self._backslash = False

    def begin(self, at: int) -> None:
        """`![` ends here; maybe inside the words of another."""
        if self.start is None:
            self.start, self._open, self._backslash = at, [0, 0, 0, 0], False
        else:
            self._open = [number + 1 for number in self._open]

    def gap(self, text: str, *, in_span: bool, in_tag: bool) -> None:
        """Characters between two units, once it has begun."""
        plain = _ANY_ESCAPED.sub("", "\\" + text if self._backslash else text)
        self._backslash = plain.endswith("\\")
        more = plain.count("[") - plain.count("]")
        out = (False, in_span, in_tag, in_span or in_tag)
        self._open = [n + more * (not o) for n, o in zip(self._open, out, strict=True)]

    def unit(self, end: int, *, is_target: bool) -> None:
        """The next unit, once it has begun.

        :param is_target: it is what a link or picture points to.
        """
        self._backslash = False
        closed = max(self._open) < 0 and not is_target  # behind its words stands something else
        if closed or end - (self.start or 0) > _MAX_PICTURE_CHARS:
            self.start = None

    def forget(self, chars: int) -> None:
        self.start = None if self.start is None else self.start - chars

    def take(self) -> bool:
        """Whether a destination that begins now is one of a picture. That of a link in its words
        may be taken for it."""
        if self.start is None:
            return False
        if max(self._open) < 0:
            self.start = None
        return True


class Attributes:
    """What stands in a tag. `any`: it has some. `quote`: a value is open that ends with this."""

    def __init__(self) -> None:
        self.any = False
        self.quote = ""
        self._value: str | None = None
        self._equals = False  # a value may begin
        self._is_style = False

    def gap(self, text: str) -> None:
        """Characters between two units."""
        while text:
            if self.quote:
                inside, end, text = text.partition(self.quote)
                self._more(inside)
                if end:
                    self.quote, self._value = "", None
                continue
            rest = text.lstrip()
            if self._equals and rest[:1] in ('"', "'"):
                self.quote, self._value, self._equals, text = rest[0], "", False, rest[1:]
            elif self._value is not None and _SPACE.search(text) is None:
                self._more(text)
                return
            else:
                self._value = None
                self._equals = self._equals and not rest
                return

    def word(self, word: str) -> str | None:
        """The next word; what the value is so far, if it is written in disguise."""
        if self._value is not None:
            self._more(word)
        elif self._equals:
            self._value, self._equals = word, False
        else:
            name, equals, value = word.partition("=")
            self._is_style = name.lower().endswith("style")
            self.any = self.any or bool(equals)
            self._value, self._equals = value or None, bool(equals and not value)
        value = (self._value or "")[:READ_CHARS]
        if _DISGUISED.search(value) is None:
            return None
        return undisguised(_CSS_ESCAPED.sub(_css_letter, value) if self._is_style else value)

    def sign(self, sign: str) -> None:
        """The next unit, which is no word."""
        self._more(sign)

    def _more(self, text: str) -> None:
        if self._value is not None and len(self._value) < READ_CHARS:
            self._value += text


def _css_letter(found: re.Match[str]) -> str:
    return chr(min(int(found[1], 16), 0xFFFD)) if found[1] else found[2]


def undisguised(value: str) -> str:
    """An address as a browser reads it."""
    if _LONG_REFERENCE.search(value):  # nobody has a reason to write it so
        return _ANOTHER_HOST
    return _BREAKS.sub("", html.unescape(value)).replace("\\", "/")
