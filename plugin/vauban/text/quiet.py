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
from vauban.text.destinations import READ_CHARS
from vauban.text.passages import LOOK_BACK_CHARS, MAX_WORD_CHARS, WORD_CHARS

LOOK_AHEAD_CHARS: Final = 192
_BLOCK_CHARS: Final = 3_072
_MAX_SPAN_CHARS: Final = 100
_WORTH_CHARS: Final = 32
_MAX_READ_CHARS: Final = 768
_MANY_WORDS: Final = 8  # from so many on it pays to ask once for all of them
_WORD = rf"[{WORD_CHARS}]"
_DISGUISE = rf"[^\s)\\&]{{0,{READ_CHARS}}}[\\&]"
# It begins with a set, because `re` passes quickly over what is not in one.
_SIGN = re.compile(
    r"[<`!\]](?:(?P<tag>(?<=<)[A-Za-z/?!])|(?<=!)\["
    rf"|(?P<span>(?<=`)(?<!\\`)[^`\n<!]{{1,{_MAX_SPAN_CHARS}}}`(?!`))|(?P<ticks>(?<=`)`{{0,63}})"
    rf"|(?<=\]):(?:\s{{48}}|\s{{0,47}}(?:<\s|<?(?:[A-Za-z0-9+.\-]{{1,16}}:|//|{_DISGUISE})))"
    rf"|(?<=\])\((?:\s{{48}}|\s{{0,47}}(?:<\s|<?{_DISGUISE})))"
)
_INFO_LINE = re.compile(r"[^`\n<>!\[\]]*\n")
_FENCE_END = re.compile(r"[ \t\r]*\n")
_RUNS = re.compile(r"(?i:script:|data:(?:text/html|image/svg|application/))")
_LONG_WORD = re.compile(rf"{_WORD}{{{secret_rules.MIN_WORD_CHARS},}}|//")
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


def first_notable(
    buffer: str, start: int, end: int, *, fence: int, in_html: bool
) -> tuple[int, int]:
    """Where the first sign in `buffer[start:end]` stands that has to be read (`end` if none has),
    and the fence of the code block that it stands in.

    At `end` a word ends or begins, and `LOOK_AHEAD_CHARS` stand behind. A code span that goes over
    it has to be read.

    :param fence: so many backticks fence the code block at `start`, where tags and short runs of
        backticks mean nothing; 0: there is none.
    :param in_html: no code block can begin.
    """
    for found in _SIGN.finditer(buffer, start, end + LOOK_AHEAD_CHARS):
        at, after = found.span()
        if at >= end:
            break
        kind = found.lastgroup
        if kind == "span":
            read = found.group()
            if "]:" not in read and (fence or (after <= end and "|" not in read)):
                continue
        elif kind == "ticks" and after - at >= 3:
            begins_line = at == 0 or buffer[at - 1] == "\n"
            if fence and not (begins_line and after - at >= fence):
                continue
            if fence and _FENCE_END.match(buffer, after, end):
                fence = 0
                continue
            if not (fence or in_html) and begins_line and _INFO_LINE.match(buffer, after, end):
                fence = after - at
                continue
        elif fence and kind in ("tag", "ticks"):
            continue
        return at, fence
    return end, fence


class NotableWords:
    """The words of a text that have to be read, found block by block as the reader goes on.

    :param counts_drawn: words that only look drawn are counted instead.
    """

    def __init__(self, *, counts_drawn: bool) -> None:
        self._counts_drawn = counts_drawn
        self._known_to = 0
        self._places: deque[int] = deque()
        self._drawn: deque[int] = deque()
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
            notable, drawn = notable_words(buffer, start, end, counts_drawn=self._counts_drawn)
            self._places = deque(base + at for at in notable)
            self._drawn = deque(base + at for at in drawn)
        _drop(self._places, base + start)
        _drop(self._drawn, base + start)
        return (self._places[0] if self._places else self._known_to) - base

    def passed(self, place: int) -> int:
        """How many words that are only counted stand before a place in the text, which was passed
        over."""
        return _drop(self._drawn, place)


def _drop(places: deque[int], upto: int) -> int:
    dropped = 0
    while places and places[0] < upto:
        places.popleft()
        dropped += 1
    return dropped


def notable_words(
    buffer: str, start: int, end: int, *, counts_drawn: bool
) -> tuple[list[int], list[int]]:
    """Where the words of `buffer[start:end]` begin that have to be read, and those that only look
    drawn and are to be counted, in order.

    No word goes over `start` or `end`, and none has `MAX_WORD_CHARS`.
    """
    text = buffer[start:end]
    before = buffer[max(0, start - secret_rules.CONTEXT_CHARS) : end + 1]
    suspects = set(_suspects(text.encode("ascii", "replace")))
    if secret_rules.may_lack_a_run(before):
        suspects.update(found.start() for found in _LONG_WORD.finditer(text))
    named = bool(suspects) and secret_rules.may_be_named(before)
    assigned = len(suspects) < _MANY_WORDS or secret_rules.may_assign(before)
    notable: list[int] = []
    drawn: list[int] = []
    last = 0
    for at in sorted(suspects):
        if at < last:
            continue
        a = start + len(text[:at].rstrip(_WORD_LETTERS))
        found = _REST_OF_WORD.match(buffer, start + at, end)
        b = start + at if found is None else found.end()
        last = b - start
        if _may_be_more(buffer, a, b, assigned=assigned):
            notable.append(a)
            continue
        word = buffer[a:b]
        span = secret_rules.drawn_span(word) if "//" not in word else None
        if span is not None:
            only_counts = counts_drawn and ":" not in word
            if only_counts and named:
                only_counts = not secret_rules.is_named(buffer, a + span[0])
            (drawn if only_counts else notable).append(a)
    return notable, drawn


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


def _may_be_more(buffer: str, a: int, b: int, *, assigned: bool) -> bool:
    """Whether a rule may find something in a word, but for its looking drawn.

    :param assigned: something before the word may name what it is.
    """
    word = buffer[a:b]
    if b - a >= MAX_WORD_CHARS or (":" in word and _RUNS.search(word)):
        return True
    if secret_rules.plain_start(buffer, a, b) is not None:
        return True
    if assigned and secret_rules.named_start(buffer, a, b) is not None:
        return True
    if "-----" in word and "PRIVATE" in buffer[max(0, a - LOOK_BACK_CHARS) : b]:
        return True
    if "//" not in word:
        return False
    at = links.address_start(word)
    return at is not None and "://" in word and links.carries_data(word[at:])
