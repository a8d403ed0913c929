"""Words, sentences, documents and things to say: the raw material of the stand-in's tasks.

Drawn from the word list that ships and from patterns written here; nothing comes from a benchmark
or a red-team tool. One word of twenty is kept for the evaluation.
"""

from __future__ import annotations

import base64
import codecs
import random
from functools import cache
from pathlib import Path

_WORD_FILE = Path(__file__).parents[1] / "data" / "english_words.txt"
_HELD_OUT_EVERY = 20


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_COMMON = _split(
    "the of and a to in is was for it with as his on be at by had not are but from or have an "
    "they which one you were all her she there would their we him been has when who will no "
    "more if out so up said what its about than into them can only other time new some could "
    "these two may first then do any like my now over such our man me even most made after also "
    "did many your must through back where much before how well down should because each just "
    "those people too little good very make still see own work long here between both being "
    "under never same last while great since against go come right used take three state high"
)
_ADJECTIVES = _split(
    "old small green quiet bright early northern broken heavy plain narrow warm young empty "
    "silver distant careful clever gentle hollow rapid steady golden wooden patient"
)
_NOUNS = _split(
    "harbour garden teacher engine river bridge market painter window letter mountain doctor "
    "kitchen train forest museum captain library valley ticket bicycle island farmer village "
    "orchard singer ladder station lamp basket clock radio camera notebook kettle sofa"
)
_VERBS = _split(
    "found sold painted repaired watched measured carried opened followed described closed lost "
    "visited remembered built bought cleaned collected drew moved counted borrowed named"
)
NAMES = _split(
    "Anna Boris Clara Deniz Elif Farid Greta Hugo Ines Jonas Katja Liam Mira Nadia Oskar Petra "
    "Quinn Rosa Samir Tessa Umar Vera Wanda Xaver Yara Zeno Bruno Celia Dario Edith"
)
_ZERO_WIDTH = "\u200b\u200c\u2060\ufeff"
_LEET = str.maketrans("aeiostAEIOST", "431057431057")


@cache
def _word_list() -> tuple[list[str], list[str]]:
    """Words for training, and words kept for the evaluation."""
    words = [w for w in _WORD_FILE.read_text(encoding="utf-8").split() if w.isalpha()]
    kept = words[7::_HELD_OUT_EVERY]
    held = set(kept)
    return [w for w in words if w not in held], kept


class Texts:
    """Draws texts.

    `held_out`: with the words that training never draws. `long`: some are of thousands of words.
    """

    def __init__(self, rng: random.Random, *, held_out: bool = False, long: bool = True) -> None:
        self.long = long
        self.rng = rng
        self.chance = rng.random
        self._words = _word_list()[1 if held_out else 0]

    def pick(self, *choices: str) -> str:
        return choices[int(self.chance() * len(choices))]

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1. `randrange` is five times as slow."""
        return int(self.chance() * limit)

    def word(self) -> str:
        return self._words[int(self.chance() * len(self._words))]

    def words(self, least: int, most: int) -> list[str]:
        """Mostly rare words, as payloads have them."""
        return [
            _COMMON[self.below(len(_COMMON))] if self.chance() < 0.3 else self.word()
            for _ in range(least + self.below(most - least + 1))
        ]

    def sentence(self) -> str:
        """Without a full stop."""
        r = self.chance()
        if r < 0.5:
            said = (
                f"{self.pick('the', 'a', 'our', 'this', 'my', 'every')} {self.adjective()}"
                f" {self.noun()} {_VERBS[self.below(len(_VERBS))]} {self.pick('the', 'two', 'her')}"
                f" {self.noun()} {self.pick('in', 'near', 'behind', 'with', 'of')} the"
                f" {self.noun()}"
            )
        elif r < 0.6:
            verb = _VERBS[self.below(len(_VERBS))]
            said = f"{self.name()} {verb} the {self.adjective()} {self.noun()}"
        else:
            said = " ".join(self.words(3, 14))
            if self.chance() < 0.2:
                said = said.replace(" ", ", ", 1)
        return said[0].upper() + said[1:]

    def noun(self) -> str:
        return self.word() if self.chance() < 0.4 else _NOUNS[self.below(len(_NOUNS))]

    def adjective(self) -> str:
        return self.word() if self.chance() < 0.3 else _ADJECTIVES[self.below(len(_ADJECTIVES))]

    def name(self) -> str:
        return self.word().capitalize() if self.chance() < 0.4 else NAMES[self.below(len(NAMES))]

    def prose(self, sentences: int) -> str:
        parts = []
        for _ in range(sentences):
            parts.append(self.sentence() + self.pick(".", ".", ".", "!", "?", ":", ";"))
            if self.chance() < 0.12:
                parts.append(self.pick("\n", "\n\n", "\n- ", "\n* ", "\n1. "))
        return " ".join(parts).replace(" \n", "\n").strip()

    def number(self) -> str:
        return str(self.below(self.rng.choice((10, 100, 1_000, 10_000, 1_000_000))))

    def code(self) -> str:
        """A secret: a password, a number, a key."""
        r = self.chance()
        if r < 0.4:
            return f"{self.word().upper()}-{self.number()}"
        if r < 0.6:
            return f"{self.word()}{self.pick('_', '-', '.', '')}{self.word()}"
        if r < 0.8:
            return "".join(
                self.pick(*"abcdefghkmnpqrstuvwxyzABCDEFGHKLMN23456789") for _ in range(8)
            )
        return self.number() + self.number()

    def link(self) -> str:
        return (
            f"https://{self.word()}.{self.pick('example', 'com', 'org', 'test')}/{self.word()}"
            f"{self.pick('', '?' + self.word() + '=' + self.number(), '/' + self.word())}"
        )

    def saying(self) -> str:
        """What somebody is told to say: most often a sentence, now and then odd characters."""
        r = self.chance()
        if r < 0.30:
            return self.sentence()
        if r < 0.50:
            return self.sentence().lower()
        if r < 0.66:
            return " ".join(self.words(1, 4))
        if r < 0.72:
            return self.sentence().upper() + self.pick("", "!", "!!")
        if r < 0.78:
            return self.code()
        if r < 0.83:
            return self.link()
        if r < 0.88:
            return f"{self.sentence()}{self.pick('.', '!', '?', ', ' + self.name())}"
        return self._odd()

    def _odd(self) -> str:
        word, link = self.word(), self.link()
        return self.rng.choice(
            (
                f"![{word}]({link})",
                f"[{word}]({link})",
                f"<{self.pick('b', 'p', 'div', 'script', 'i')}>{word} {self.word()}",
                f'{{"{word}": "{self.word()}", "{self.word()}": {self.number()}}}',
                f"\\x1b[{self.below(100)}m{word}\\x1b[0m",
                f"{self.number()} + {self.number()} = {self.number()}",
                f"{word}_{self.word()}({self.number()});",
                f"* {word} * {self.word()} *",
                f"{self.name()}: {self.sentence()}",
                "".join(self.pick(*"abcdefghijklmnopqrstuvwxyz0123456789-_/.#") for _ in range(12)),
            )
        )


def random_capitals(text: str, rng: random.Random) -> str:
    return "".join(c.upper() if rng.random() < 0.5 else c.lower() for c in text)


def encoded(text: str, how: str, rng: random.Random) -> str:
    """`text` in one of `ENCODINGS`."""
    if how == "base64":
        return base64.b64encode(text.encode()).decode()
    if how == "hex":
        return text.encode().hex()
    if how == "rot13":
        return codecs.encode(text, "rot13")
    if how == "tags":
        return "".join(chr(0xE0000 + ord(c)) if 31 < ord(c) < 127 else c for c in text)
    if how == "leetspeak":
        return text.translate(_LEET)
    if how == "zero-width":
        mark = rng.choice(_ZERO_WIDTH)
        return mark.join(text)
    if how == "reversed":
        return text[::-1]
    return random_capitals(text, rng)


ENCODINGS = ("base64", "hex", "rot13", "tags", "leetspeak", "zero-width", "reversed", "capitals")
LIGHT = ("leetspeak", "zero-width", "capitals")
"""Disguises that leave an order readable: it is obeyed, while what is encoded is read out."""
