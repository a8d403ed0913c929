"""Finds the next unit of a text that a rule could heed, so that what lies before is not read.

In a text where nothing is open (`Passages.may_skip`), all other units are passed over without a
finding, and change nothing of what `Passages` remembers but what `Passages.skip` says.

A word can only be heeded for a long run of the characters of credentials, or for one of a few
marks. Both are looked for in a whole block at once, and only words that have one are judged.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Final

from vauban.text import links, secret_rules
from vauban.text.passages import LOOK_BACK_CHARS, MAX_WORD_CHARS, WORD_CHARS

LOOK_AHEAD_CHARS: Final = 128
_BLOCK_CHARS: Final = 3_072
_MAX_SPAN_CHARS: Final = 100
_WORTH_CHARS: Final = 32
_MAX_READ_CHARS: Final = 768
_WORD = rf"[{WORD_CHARS}]"
# It begins with a set, because `re` passes quickly over what is not in one.
_SIGN = re.compile(
    r"[<`!\]](?:(?P<tag>(?<=<)[A-Za-z/?!])|(?<=!)\["
    rf"|(?P<span>(?<=`)[^`\n<!]{{1,{_MAX_SPAN_CHARS}}}`(?!`))|(?P<ticks>(?<=`)`{{0,63}})"
    r"|(?<=\]):\s{0,8}<?(?:[A-Za-z0-9+.\-]{1,16}:|//))"
)
_DEFINITION_BEFORE = re.compile(r"\]:?\s{0,8}<?\Z")
_RUNS = re.compile(r"(?i:script:|data:(?:text/html|image/svg|application/))")
_LONG_WORD = re.compile(rf"{_WORD}{{{secret_rules.MIN_WORD_CHARS},}}|//")
_DIGIT = re.compile(r"[0-9]")
_REST_OF_WORD = re.compile(rf"{_WORD}*")
_TRAILING = "".join(c for c in map(chr, range(33, 127)) if re.match(f"[{WORD_CHARS}`!<\\]]", c))
_WORD_LETTERS = "".join(c for c in map(chr, range(33, 127)) if re.match(_WORD, c))

# A word without so long a run, and without one of the marks, is plain.
_RUN: Final = b"x" * secret_rules.MIN_RUN_CHARS
_RUN_CLASSES: Final = bytes(
    ord("x") if re.match(secret_rules.RUN_CHARS, chr(n)) else 0 for n in range(256)
)
_SMALL_MARKS: Final = (
    b"script:", b"data:text/html", b"data:image/svg", b"data:application/", b"key-----",
    b"block-----", *(mark.lower().encode() for mark in secret_rules.SHORT_MARKS),
)  # fmt: skip
_SHORT_KEY = re.compile(secret_rules.SHORT_KEY.encode())
_IN_LINKS = re.compile(rb"[%+@]")


def first_notable(buffer: str, start: int, end: int, *, in_code: bool) -> int:
    """Where the first sign in `buffer[start:end]` stands that has to be read; `end` if none has.

    At `end` a word ends or begins, and `LOOK_AHEAD_CHARS` stand behind. A code span that goes over
    it has to be read.

    :param in_code: inside a fenced block, where tags and short runs of backticks mean nothing.
    """
    if _DEFINITION_BEFORE.search(buffer, max(0, start - 12), start):
        return start
    for found in _SIGN.finditer(buffer, start, end + LOOK_AHEAD_CHARS):
        at, after = found.span()
        if at >= end:
            break
        kind = found.lastgroup
        if kind == "span":
            if (in_code or after <= end) and "]:" not in found.group():
                continue
        elif in_code and (kind == "tag" or (kind == "ticks" and after - at < 3)):
            continue
        return at
    return end


class NotableWords:
    """The words of a text that have to be read, found block by block as the reader goes on."""

    def __init__(self) -> None:
        self._known_to = 0
        self._places: deque[int] = deque()
        self._in_vain = 0

    def to_read(self, passed: int) -> int:
        """How many characters to read where so many were passed over and then something has to be
        read: more each time if it is little again and again, because trying costs, too."""
        self._in_vain = self._in_vain + 1 if passed < _WORTH_CHARS else 0
        return min(max(1, self._in_vain**2), _MAX_READ_CHARS)

    def next(self, buffer: str, base: int, start: int) -> int | None:
        """Where in the buffer, which begins at `base`, the first of them stands from `start` on,
        or up to where there is none; None: the block is all one word."""
        if base + start >= self._known_to:
            stop = min(start + _BLOCK_CHARS, len(buffer) - LOOK_AHEAD_CHARS)
            end = start + len(buffer[start:stop].rstrip(_TRAILING))
            if end == start:
                return None
            self._known_to = base + end
            self._places = deque(base + at for at in notable_words(buffer, start, end))
        while self._places and self._places[0] < base + start:
            self._places.popleft()
        return (self._places[0] if self._places else self._known_to) - base


def notable_words(buffer: str, start: int, end: int) -> list[int]:
    """Where the words of `buffer[start:end]` begin that have to be read, in order.

    No word goes over `start` or `end`, and none has `MAX_WORD_CHARS`.
    """
    text = buffer[start:end]
    before = buffer[max(0, start - secret_rules.CONTEXT_CHARS) : end]
    suspects = set(_suspects(text.encode("ascii", "replace")))
    if not before.isascii() and secret_rules.BEYOND_ASCII.search(before):
        suspects.update(found.start() for found in _LONG_WORD.finditer(text))
    places = []
    last = 0
    for at in sorted(suspects):
        if at < last:
            continue
        a = start + len(text[:at].rstrip(_WORD_LETTERS))
        found = _REST_OF_WORD.match(buffer, start + at, end)
        b = start + at if found is None else found.end()
        last = b - start
        if not _is_plain(buffer, a, b):
            places.append(a)
    return places


def _suspects(raw: bytes) -> Iterator[int]:
    """Where anything stands for which a word could have to be read."""
    runs = raw.translate(_RUN_CLASSES)
    at = runs.find(_RUN)
    while at >= 0:
        yield at
        after = runs.find(b"\0", at)
        at = runs.find(_RUN, after) if after >= 0 else -1
    small = raw.lower()
    for mark in _SMALL_MARKS:
        at = small.find(mark)
        while at >= 0:
            yield at
            at = small.find(mark, at + 1)
    for found in _SHORT_KEY.finditer(raw):
        yield found.start()
    if b"://" in raw and _IN_LINKS.search(raw):
        at = raw.find(b"://")
        while at >= 0:
            yield at
            at = raw.find(b"://", at + 3)


def _is_plain(buffer: str, a: int, b: int) -> bool:
    """Whether no rule finds anything in a word, as far as it is quick to see."""
    word = buffer[a:b]
    if "//" not in word and _DIGIT.search(word):
        return False  # it may be drawn
    if b - a >= MAX_WORD_CHARS or _RUNS.search(word):
        return False
    if secret_rules.secret_start(buffer, a, b) is not None:
        return False
    if "-----" in word and "PRIVATE" in buffer[max(0, a - LOOK_BACK_CHARS) : b]:
        return False
    if "//" not in word:
        return secret_rules.drawn_span(word) is None
    at = links.address_start(word)
    return at is None or "://" not in word or not links.carries_data(word[at:])
