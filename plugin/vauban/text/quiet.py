"""Finds the next unit of a text that a rule could heed, so that what lies before is not read.

In a text where nothing is open (`Passages.may_skip`), all other units are passed over without a
finding, and change nothing of what `Passages` remembers but what `Passages.skip` says.
"""

from __future__ import annotations

import re
from typing import Final

from vauban.text import links, secret_rules
from vauban.text.passages import LOOK_BACK_CHARS, MAX_WORD_CHARS, WORD_CHARS

LOOK_AHEAD_CHARS: Final = 128
_MAX_SPAN_CHARS: Final = 100
_QUIET_WORD_CHARS: Final = secret_rules.MIN_WORD_CHARS - 1
_WORD = rf"[{WORD_CHARS}]"
_RUNNING = r"(?i:script:|data:(?:text/html|image/svg|application/))"
_CANDIDATE = re.compile(
    rf"(?P<word>{_WORD}{{{secret_rules.MIN_WORD_CHARS},}})|(?P<tag><[A-Za-z/?!])|(?P<short>//|-----)"
    rf"|(?P<span>`(?=[^`\n<!]{{1,{_MAX_SPAN_CHARS}}}`(?!`)))|(?P<ticks>`{{1,64}})"
    rf"|!\[|\]:\s{{0,8}}<?[A-Za-z0-9+.\-]{{1,16}}:|{_RUNNING}"
)
_DEFINITION_BEFORE = re.compile(r"\]:?\s{0,8}<?\Z")
_RUNS = re.compile(_RUNNING)
_REST_OF_WORD = re.compile(rf"{_WORD}*")
_WORD_LETTERS = "".join(c for c in map(chr, range(33, 127)) if re.match(_WORD, c))
# Text without these, and without long words, has nothing in it that is a candidate.
_SIGNS = ("<", "`", "![", "//", "]:", "-----")
_SCHEMES = ("script:", "data:")
_CACHED_WORDS: Final = 8_192
_CACHED_CHARS: Final = 80
_plain_words: dict[int, bool] = {}


def first_notable(buffer: str, start: int, end: int, *, in_code: bool) -> int:
    """Where the first unit of `buffer[start:end]` begins that has to be read; `end` if none has.

    No word goes over `start` or `end`, and `LOOK_AHEAD_CHARS` stand behind.

    :param in_code: inside a fenced block, where tags and short runs of backticks mean nothing.
    """
    if _DEFINITION_BEFORE.search(buffer, max(0, start - 12), start):
        return start
    if _is_silent(buffer[start : end + 1]):
        return end
    span, span_to = -1, -1  # the last code span within a line, and its closing backtick
    for found in _CANDIDATE.finditer(buffer, start, end + LOOK_AHEAD_CHARS):
        at, kind = found.start(), found.lastgroup
        if at >= end:
            break
        if at == span_to and found.end() == at + 1:
            continue
        before = buffer[max(start, at - MAX_WORD_CHARS) : at]
        notable = at - (len(before) - len(before.rstrip(_WORD_LETTERS)))
        if kind in ("word", "short"):
            if _is_plain(buffer, notable, _end_of_word(buffer, at)):
                continue
        elif in_code and (kind in ("tag", "span") or (kind == "ticks" and found.end() - at < 3)):
            continue
        elif kind == "span":
            span, span_to = at, buffer.index("`", at + 1)
            continue
        return span if notable < span_to else notable
    return span if span_to >= end else end


def _end_of_word(buffer: str, at: int) -> int:
    found = _REST_OF_WORD.match(buffer, at)
    return at if found is None else found.end()


def _is_silent(text: str) -> bool:
    """Whether there is no candidate in a text, as far as it is quick to see."""
    if any(sign in text for sign in _SIGNS):
        return False
    if max(map(len, text.split()), default=0) > _QUIET_WORD_CHARS:
        return False
    low = text.lower()
    return not any(scheme in low for scheme in _SCHEMES)


def _is_plain(buffer: str, a: int, b: int) -> bool:
    """Whether no rule finds anything in a long word."""
    if b - a >= MAX_WORD_CHARS:
        return False
    first = max(0, a - 1)
    if not _remembered(buffer[first : b + 1], a - first, b - first):
        return False
    if secret_rules.named_start(buffer, a, b) is not None:
        return False
    word = buffer[a:b]
    if "-----" in word and "PRIVATE" in buffer[max(0, a - LOOK_BACK_CHARS) : b]:
        return False
    return "//" not in word or "]:" not in buffer[max(0, a - 24) : a]


def _remembered(text: str, a: int, b: int) -> bool:
    """`_is_plain_by_itself`, asked once for a word that comes often. No word of an answer is kept,
    but its hash, under a key that Python draws for each process."""
    if b - a > _CACHED_CHARS:
        return _is_plain_by_itself(text, a, b)
    key = hash((text, a, b))
    found = _plain_words.get(key)
    if found is None:
        if len(_plain_words) >= _CACHED_WORDS:
            _plain_words.clear()
        found = _plain_words[key] = _is_plain_by_itself(text, a, b)
    return found


def _is_plain_by_itself(text: str, a: int, b: int) -> bool:
    """The same as far as the word `text[a:b]`, and a character on each side, say."""
    if secret_rules.plain_start(text, a, b) is not None or _RUNS.search(text, a, b):
        return False
    word = text[a:b]
    if "//" not in word:
        return secret_rules.drawn_span(word) is None
    at = links.address_start(word)
    return at is None or "://" not in word or not links.carries_data(word[at:])
