"""Finds the passages of a text that must not be said, unit by unit: credentials, addresses that
are fetched or carry data, and markup that runs.

A unit is a word, a run of backticks, `![`, `<`, `>`, an escape of JSON, or a character that is not
ASCII.
Positions are those in the caller's buffer. What is code (a fenced block that begins at the start
of a line, a closed span within one line and, where it has a `|`, one cell of a table) is not
rendered, so markup in there is left alone, as far as HTML around it does not change what is code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vauban.text import links, secret_rules
from vauban.text.destinations import Attributes, Picture, Target

WORD_CHARS: Final = r"A-Za-z0-9_\-+/=.~:%@?&#$*^"
LOOK_BACK_CHARS: Final = 96
MAX_WORD_CHARS: Final = 4_096
MAX_TICKS: Final = 64
_WORD = rf"([{WORD_CHARS}]{{1,{MAX_WORD_CHARS}}})"
UNIT: Final = re.compile(rf"{_WORD}|`{{1,{MAX_TICKS}}}|!\[?|[<>]|[^\x00-\x7f]")
"""A word is its first group."""
JSON_UNIT: Final = re.compile(rf"{_WORD}|\\(?:u[0-9a-fA-F]{{4}}|[^u])|[^\x00-\x7f]")
_MAX_TAG_CHARS = 2_048
"""A tag without attributes that is longer is taken to be none."""
_MAX_SPAN_CHARS = 160

_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----")
_KEY_LINE = re.compile(
    r"Proc-Type:|4|ENCRYPTED|DEK-Info:|Version:|Comment:|(?:AES|DES)[\w-]+"
    r"|[A-Za-z0-9+/=]{16,}|[A-Za-z0-9+/]*[0-9+/=][A-Za-z0-9+/=]*"
)
_NUMBER = re.compile(r":*[-+.0-9eE]*")
_ESCAPE = re.compile(r"(?<!\\)\\(?:\\\\)*\Z")  # of a backtick, with which no span begins
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
# Their content is not Markdown, up to an end that blank lines do not bring.
_RAW_TAGS = frozenset({"pre", "textarea", "xmp", "plaintext", "script", "style", "title"})


@dataclass(frozen=True, slots=True)
class Passage:
    """`counts`: it is a finding of its own, not more of one."""

    detector: str
    start: int
    end: int
    counts: bool = True


class Passages:
    """Keeps what earlier units mean for later ones.

    `fence`: so many backticks fence the code block that has begun; 0: none has.

    :param hosts: where addresses may point to.
    :param markup: the text may be rendered.
    """

    def __init__(self, hosts: Sequence[str], *, markup: bool, json: bool) -> None:
        self._hosts = hosts
        self._json = json
        self._markup = markup
        self._key_to: int | None = None  # inside a key block, whose last line ended here
        self._glued: tuple[int, str] | None = None  # a word was cut in two here
        self._picture = Picture()
        self._tag_at: int | None = None
        self._tag: str | None = None
        self._tag_from = 0
        self._attributes = Attributes()
        self._outer: tuple[str, Attributes] | None = None  # a tag inside whose quotes one begins
        self._target = Target()
        self._is_picture = False
        self._html = self._raw_html = False
        self.fence = 0
        self._info_line = self._closing = False
        self._span: tuple[int, int] | None = None
        self._span_broken = False
        self._unsure = False  # a span that was broken may go on over the end of its line
        self._piped = False  # a span had a `|`, which may end a cell of a table, and so the span
        self._suspects: list[Passage] = []
        self._after_newline = False

    @property
    def may_skip(self) -> bool:
        """Nothing is open that the next units could end or go on with, but for a fenced block and
        HTML."""
        return (
            self._key_to is None
            and self._glued is None
            and self._picture.start is None
            and self._tag_at is None
            and self._tag is None
            and self._span is None
            and not (self._suspects or self._info_line or self._closing or self._target.may_begin)
        )

    @property
    def in_code(self) -> bool:
        """Inside a fenced block."""
        return bool(self.fence) and not self._info_line

    def skip(self, text: str, fence: int) -> None:
        """Pass over text in which nothing has to be read; see `quiet.py`."""
        self.fence = fence
        self._target.skip(text)
        if (self._html or self._unsure) and _BLANK_LINE.search(
            "\n" + text if self._after_newline else text
        ):
            self._html = self._unsure = False
        line = text.rpartition("\n")
        self._piped = self._piped and not line[1]
        self._after_newline = (bool(line[1]) or self._after_newline) and not line[2].strip(" \t\r")

    @property
    def suspect(self) -> int | None:
        """Where markup begins that is harmless only if the code span around it is closed."""
        return self._suspects[0].start if self._suspects else None

    def forget(self, chars: int) -> None:
        """The caller's buffer lost so many characters at its start."""
        self._tag_from -= chars
        self._key_to = None if self._key_to is None else self._key_to - chars
        self._picture.forget(chars)
        self._tag_at = None if self._tag_at is None else self._tag_at - chars
        if self._glued is not None:
            self._glued = (self._glued[0] - chars, self._glued[1])
        if self._span is not None:
            self._span = (self._span[0], self._span[1] - chars)
        self._suspects = [
            Passage(s.detector, s.start - chars, s.end - chars) for s in self._suspects
        ]

    def gap(self, text: str) -> None:
        """Characters between two units."""
        if not text:
            return
        if self._tag is not None:
            self._attributes.gap(text)
        if self._picture.start is not None:
            self._picture.gap(text, in_span=self._span is not None, in_tag=self._tag is not None)
        if text == " " and not self._target.may_begin:  # a blank changes nothing else
            return
        self._target.gap(text)
        if self._key_to is not None and text.strip(" \t\r\n\\"):
            self._key_to = None
        first_line, newline, _ = text.partition("\n")
        self._piped = self._piped or (self._span is not None and "|" in first_line)
        if self._closing and first_line.strip(" \t\r"):
            self._closing = False
        if not newline:
            self._after_newline = self._after_newline and not text.strip(" \t\r")
            return
        if self._closing:
            self.fence, self._closing = 0, False
        self._info_line = self._piped = False
        self._span_broken = self._span is not None
        self._unsure = self._unsure or self._span_broken
        if _BLANK_LINE.search("\n" + text if self._after_newline else text):
            self._html = self._unsure = False
            self._picture.start = None  # no words go over the end of a paragraph
        self._after_newline = not text.rpartition("\n")[2].strip(" \t\r")

    def unit(self, buffer: str, a: int, b: int, *, is_word: bool) -> list[Passage]:
        """The next unit, `buffer[a:b]`; what was found in it or became certain by it.

        `buffer` must hold `LOOK_BACK_CHARS` before the unit (if there are so many), and the
        character after it unless the text ends there.
        """
        self._closing = False
        self._after_newline = False
        if (
            is_word
            and b - a < secret_rules.MIN_WORD_CHARS
            and self._span is None
            and self._key_to is None
            and self._glued is None
            and self._tag_at is None
            and self._tag is None
            and self._picture.start is None
            and not self._target.may_begin
        ):
            word = buffer[a:b]
            if ":" not in word and "/" not in word and "--" not in word:
                return []  # nearly always
        found = self._settle(a)
        if self._picture.start is not None:
            self._picture.unit(b, is_target=self._target.kind == "target")
        if is_word:
            found.extend(self._word(buffer, a, b))
        else:
            found.extend(self._sign(buffer, a, b))
        if self._tag and not self._attributes.any and b - self._tag_from > _MAX_TAG_CHARS:
            self._tag = self._outer = None
        return found

    def end(self) -> list[Passage]:
        """The text ends: a span that is still open is none."""
        self._span_broken = self._span is not None
        return self._settle(0)

    def _settle(self, a: int) -> list[Passage]:
        ends = self._span is not None and (self._span_broken or a - self._span[1] > _MAX_SPAN_CHARS)
        if not (ends or self._piped):
            return []
        found, self._suspects = self._suspects, []
        self._html = self._html or bool(found)
        if not ends:
            return found
        self._unsure = self._unsure or not self._span_broken
        self._span, self._span_broken = None, False
        return found

    # -- signs ---------------------------------------------------------------------------------

    def _sign(self, buffer: str, a: int, b: int) -> Iterator[Passage]:
        sign = buffer[a]
        if sign == "\\" and self._key_to is not None and buffer[a + 1] in "nrt\\/u":  # of JSON
            yield Passage("secrets", self._key_to, b, counts=False)
            self._key_to = b
            return
        self._key_to = None
        self._target.sign(buffer[a:b])
        if not self._markup:
            return
        if self._tag is not None:
            self._attributes.sign(buffer[a:b])
        if sign == "`":
            self._ticks(buffer, a, b - a)
        elif sign == "<":
            self._tag_at = b
            return
        elif sign == ">":
            self._end_tag()
        elif b - a == 2:
            self._picture.begin(a)
        elif sign == "!" and self._tag_at == a and not self.fence:
            self._html = self._raw_html = True
        self._tag_at = None

    def _end_tag(self) -> None:
        if self._tag is None or self._attributes.quote:  # there it ends no tag
            return
        self._tag = None
        if self._outer is not None:  # of two ways to read it, either may be the renderer's
            (self._tag, self._attributes), self._outer = self._outer, None

    def _ticks(self, buffer: str, a: int, number: int) -> None:
        at_line_start = a == 0 or buffer[a - 1] == "\n"
        if self.fence:
            if self._info_line:
                self.fence, self._info_line = 0, False  # no fence has backticks behind it
            else:
                self._closing = at_line_start and number >= self.fence
        elif number >= 3 and at_line_start and not self.is_html:
            self.fence, self._info_line = number, True
        elif self._span is None:
            number -= _ESCAPE.search(buffer[max(0, a - LOOK_BACK_CHARS) : a]) is not None
            self._span, self._span_broken = (number, a) if number else None, False
        elif self._span[0] == number:
            self._span = None
            self._suspects.clear()

    @property
    def is_html(self) -> bool:
        """No code block can begin."""
        return self._html or self._raw_html or not self._markup

    # -- words ---------------------------------------------------------------------------------

    def _word(self, buffer: str, a: int, b: int) -> Iterator[Passage]:
        word, cut_short = buffer[a:b], b - a == MAX_WORD_CHARS
        glued, self._glued = self._glued, None
        tag_at, self._tag_at = self._tag_at, None
        opens_tag = tag_at == a
        disguised = self._disguised(word, opens_tag=opens_tag)
        if self._json and _NUMBER.fullmatch(word):
            passages = []  # without it the rest would be no JSON
        elif glued is not None and glued[0] == a:
            passages = [Passage(glued[1], a, b, counts=False)]
        else:
            passages = [*self._key(buffer, word, a, b)]
            if not passages:
                passages = [*self._read_word(buffer if not cut_short else buffer[:b], word, a, b)]
            if disguised is not None and self._markup and not passages:
                passages = [*self._behind(disguised, a, b)]
            passages += self._active(word, a, b, opens_tag=opens_tag)
        if cut_short:
            whole = next((p.detector for p in passages if p.end == b), "")
            self._glued = (b, whole) if whole else None
        yield from passages

    def _key(self, buffer: str, word: str, a: int, b: int) -> Iterator[Passage]:
        if self._key_to is not None and "-----" not in word and _KEY_LINE.fullmatch(word):
            yield Passage("secrets", self._key_to, b, counts=False)
            self._key_to = b
            return
        self._key_to = None
        if "-----" not in word:
            return
        for found in _KEY_BLOCK.finditer(buffer, max(0, a - LOOK_BACK_CHARS), b):
            if found.end() > a:
                yield Passage("secrets", found.end(), b)
                self._key_to = b

    def _read_word(self, buffer: str, word: str, a: int, b: int) -> Iterator[Passage]:
        if len(word) >= secret_rules.MIN_WORD_CHARS or "//" in word:
            at = secret_rules.secret_start(buffer, a, b)
            if at is not None:
                yield Passage("secrets", at, b)
                return
        if "//" not in word and (span := secret_rules.drawn_span(word)):
            named = secret_rules.is_named(buffer, a + span[0])
            yield Passage("secrets" if named else "entropy", a + span[0], b)
        if ":" in word or "//" in word:
            yield from self._address(word, a, b)

    def _disguised(self, word: str, *, opens_tag: bool) -> str | None:
        """What the destination that the word belongs to is so far, if it does not look so."""
        plain = self._target.word(word)
        if self._tag is not None and not opens_tag:
            plain = self._attributes.word(word) or plain
        if self._target.is_first and self._target.kind == "target":
            self._is_picture = self._picture.take()
        return plain

    def _behind(self, plain: str, a: int, b: int) -> Iterator[Passage]:
        """What is wrong with a destination that is written in disguise."""
        if self.in_code:
            return
        at = links.address_start(plain)
        if links.script_start(plain, as_target=True) is not None:
            yield Passage("active", a, b)
        elif (
            self._is_fetched(self._target.kind, at == 0)
            and at is not None
            and links.fetches(plain[at:])
            and not links.is_allowed(plain[at:], self._hosts)
        ):
            yield Passage("images", a, b)

    def _address(self, word: str, a: int, b: int) -> Iterator[Passage]:
        kind = self._target.kind if self._target.begins else ""
        target = kind == "target"
        at = links.address_start(word)
        is_picture = not self.in_code and self._is_fetched(kind, at == self._target.offset)
        running = links.script_start(word, as_target=target)
        if running is not None and self._markup and not self.in_code:
            yield Passage("active", a + running, b)
        elif at is not None and not links.is_allowed(word[at:], self._hosts):
            if is_picture and links.fetches(word[at:]):
                yield Passage("images", a + at, b)
            elif "://" in word and links.carries_data(word[at:]):
                yield Passage("links", a + at, b)

    def _is_fetched(self, kind: str, at_start: bool) -> bool:
        """Whether an address that stands here is, without a click.

        :param kind: see `Target`. :param at_start: of what stands here.
        """
        if (kind == "definition" and at_start) or (kind == "target" and self._is_picture):
            return True
        return self._tag not in (None, "a")

    def _active(self, word: str, a: int, b: int, *, opens_tag: bool) -> Iterator[Passage]:
        if not self._markup or self.in_code:
            return
        name = links.tag_name(word) if opens_tag else None
        if name is not None:
            if self._tag is not None and self._attributes.quote and self._outer is None:
                self._outer = (self._tag, self._attributes)
            self._tag, self._tag_from, self._attributes = name, a, Attributes()
            self._attributes.word(word)
            if self._span is None or self._unsure or self._piped:
                self._html = True
                self._raw_html = self._raw_html or name in _RAW_TAGS
        elif opens_tag and word[0] == "?":
            self._html = self._raw_html = True
        if (name is not None and links.is_active(name)) or (
            self._tag is not None and not opens_tag and links.is_handler(word)
        ):
            passage = Passage("active", a, b)
            if self._span is not None and not (self._unsure or self._piped or self.is_html):
                self._suspects.append(passage)
            else:
                yield passage
