"""Recognises the operator's own sentences in what a model says, word by word.

The words of the operator's texts are kept as overlapping groups of four. What is said runs along
them as long as each of its groups is one of these; a long run is the text being given away. Case
and punctuation do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

GROUP: Final = 4
_GROUP_KNOWN = bytes([True] * GROUP)
_WORD = re.compile(r"[0-9A-Za-z]+|[^\x00-\x7f]")
_ASCII = bytes(range(128))
_MANY_SIGNS = 16
_PLAIN = bytes(
    n if n > 127 else ord(chr(n).lower()) if chr(n).isalnum() else ord(" ") for n in range(256)
)

Group = tuple[str, str, str, str]


def words_of(text: str) -> list[str]:
    """The words that count: runs of ASCII letters and digits, and each other character beyond
    ASCII."""
    if text.isascii():
        return text.encode().translate(_PLAIN).decode().split()
    raw = text.encode("utf-8", "surrogatepass")
    beyond = set(raw.translate(None, _ASCII).decode("utf-8", "surrogatepass"))
    if len(beyond) > _MANY_SIGNS:
        return [word.lower() for word in _WORD.findall(text)]
    for sign in beyond:
        text = text.replace(sign, f" {sign} ")
    small = text.encode("utf-8", "surrogatepass").translate(_PLAIN)
    words = small.decode("utf-8", "surrogatepass").lower().split(" ")
    return list(filter(None, words))  # a blank beyond ASCII is a word, too


def spans_of(text: str) -> list[tuple[str, int]]:
    """The same words, and where each begins."""
    return [(found.group().lower(), found.start()) for found in _WORD.finditer(text)]


def groups_of(words: list[str]) -> Iterable[Group]:
    return zip(words, words[1:], words[2:], words[3:], strict=False)


class Overlap:
    """The groups of the operator's texts; false when there are none.

    :param texts: what must not be said.
    :param run_words: a run of so many words is a leak; of a shorter text, all of its words. A text
        of less than eight words is too short to tell from anything else.
    """

    def __init__(self, texts: Iterable[str], run_words: int) -> None:
        self.groups: set[Group] = set()
        self.words: set[str] = set()
        self._rare: set[str] = set()  # each group has one of them
        self.run_words = run_words
        for text in texts:
            words = words_of(text)
            if len(words) >= 2 * GROUP:
                self.groups.update(groups_of(words))
                self.words.update(words)
                self.run_words = min(self.run_words, len(words))
        for group in sorted(self.groups):
            if self._rare.isdisjoint(group):
                self._rare.add(max(group, key=len))  # long words are rarer

    def __bool__(self) -> bool:
        return bool(self.groups)

    def touches(self, words: list[str]) -> bool:
        """Whether any group of these words is one of the operator's."""
        if self._rare.isdisjoint(words):
            return False
        known = bytes(map(self.words.__contains__, words))
        return _GROUP_KNOWN in known and not self.groups.isdisjoint(groups_of(words))


class Follower:
    """Follows what is said along the operator's texts.

    `run`: so many words of them were said in a row.
    """

    def __init__(self, overlap: Overlap) -> None:
        self.run = 0
        self._overlap = overlap
        self._said: list[tuple[str, int]] = []  # the last words of a group, and where they begin
        self._run_from = self._run_to = 0

    @property
    def suspect(self) -> int | None:
        """Where a run begins that may become a leak."""
        return self._run_from if 0 < self.run < self._overlap.run_words else None

    def unit(self, unit: str, start: int) -> list[tuple[int, int, bool]]:
        """The next unit of the text, which begins at `start`; what leaks in it: from, to, and
        whether a leak begins there."""
        words, groups = self._overlap.words, self._overlap.groups
        plain = unit.isascii() and unit.isalnum()
        if plain and unit.lower() not in words:
            self.run, self._said = 0, []
            return []
        found = []
        end = start + len(unit)
        for word, at in [(unit.lower(), 0)] if plain else spans_of(unit):
            if word not in words:
                self.run, self._said = 0, []
                continue
            recent = [*self._said, (word, start + at)]
            self._said = recent[1 - GROUP :]
            if len(recent) < GROUP or tuple([word for word, _ in recent]) not in groups:
                self.run = 0
                continue
            if not self.run:
                self.run, self._run_from = GROUP - 1, recent[0][1]
            self.run += 1
            if self.run == self._overlap.run_words:
                found.append((self._run_from, end, True))
            elif self.run > self._overlap.run_words:
                found.append((self._run_to, end, False))
            self._run_to = end
        return found

    def stands_behind(self, other: Follower, text: str) -> None:
        """What another has read, and this text, come before."""
        self.run, self._said = other.run, other._said
        self.unit(text, 0)
        self._said = [(word, 0) for word, _ in self._said]
        self._run_from = self._run_to = 0

    def passes_over(self, text: str, start: int, first: int) -> list[tuple[str, int]] | None:
        """What to `skip_to` where the text `text`, which begins at `start`, is passed over; None:
        it may say the operator's words. Nothing that begins before `first` can be taken out."""
        words = words_of(text)
        if self._overlap.touches([word for word, _ in self._said] + words):
            return None
        last = max(0, first - start)
        begins = [start + last + at for _, at in spans_of(text[last:])]
        words = words[1 - GROUP :]
        places = [*[0] * len(words), *begins][len(begins) :]
        return [*self._said, *zip(words, places, strict=True)][1 - GROUP :]

    def skip_to(self, said: list[tuple[str, int]]) -> None:
        """See `passes_over`."""
        self._said = said
