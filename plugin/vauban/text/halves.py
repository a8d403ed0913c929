"""Credentials that begin in one text and end in another."""

from __future__ import annotations

import re
from typing import Final

from vauban.text import secret_rules
from vauban.text.passages import WORD_CHARS

MAX_HALF_CHARS: Final = 160
_LAST_WORD = re.compile(rf"[{WORD_CHARS}]{{1,{MAX_HALF_CHARS}}}\Z")
_FIRST_WORD = re.compile(rf"[{WORD_CHARS}]{{1,{MAX_HALF_CHARS}}}")


def secret_across(before: str, after: str, least: int = 1) -> int | None:
    """Where the word ends in which a credential ends that has begun in the text before; None: there
    is none. Addresses with a password are not looked for: a port and a mail address look like one.

    :param least: so many of its characters, at least, stand in each.
    """
    half, rest = _LAST_WORD.search(before), _FIRST_WORD.match(after)
    if half is None or rest is None:
        return None
    word, middle = half.group() + rest.group(), len(half.group())
    if "://" in word or secret_rules.plain_start(word, 0, middle) is not None:
        return None
    at = secret_rules.plain_start(word, 0, len(word))
    if at is None or not least <= middle - at or rest.end() < least:
        return None
    return rest.end()
