"""The detector's copy: disguises of plain words undone.

`fold_characters` is NFKC, look-alike letters (UTS #39 data) and diacritics that no longer belong
to a letter. `fold_words` joins s p a c e d letters and undoes l33t. Both leave ordinary text of
any language (almost) as it is: look-alikes are folded inside a word that mixes scripts, and
words made of look-alikes only where they outweigh true words of that script; single letters are
joined where wider gaps show the words, or where they make English ones; leetspeak is read where
the result is a known word, or where a large part of the words is written so. Letter case stays.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from functools import cache, lru_cache
from itertools import pairwise

import regex
from confusable_homoglyphs.confusables import confusables_data

from vauban.text.leet import leet_shape, undo_leet
from vauban.text.unicode_clean import GENERAL_MARKS
from vauban.text.words import SHORT_WORDS, known_english, replace_words

# --- characters ------------------------------------------------------------------------------

# Scripts whose words are not set apart by spaces would be mixed with Latin in ordinary text.
_UNSPACED = (
    r"\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fff\u3005-\u318f\u31a0-\u31ff\u3400-\u9fff"
    r"\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_ORDINARY_LATIN = range(0xC0, 0x250)  # letters of European alphabets, not disguises
_SMALL_CAPITALS = (range(0x250, 0x2B0), range(0x1D00, 0x1D80), range(0xA720, 0xA800))
# One character, 18 after NFKC: a formula of honour that would multiply the detector's work.
_LONG_LIGATURES = {0xFDFA: " ", 0xFDFB: " "}
_SPACES = {0x1680: " ", 0x2028: "\n", 0x2029: "\n", 0x2800: " "}
# NFKC makes a final sigma of the lunate one, which looks like "c".
_LUNATE = {ord("ϲ"): "ς", ord("Ϲ"): "Σ"}
_NOT_LUNATE = re.compile("[^ϲϹ]+")
_TURKISH = re.compile("[ğşİĞŞə]")
_INVISIBLE = regex.compile(rf"[\p{{Cf}}\p{{Variation_Selector}}\u034f{GENERAL_MARKS}]+", regex.V1)
_PILE = re.compile(f"[{GENERAL_MARKS}]{{3,}}")  # no letter of a living language has three
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[^\W{_UNSPACED}]+")
# Accents do not make a letter a disguise; small capitals and phonetic letters may be one.
_LATIN = r"A-Za-z\u00c0-\u024f\u1e00-\u1eff"
_LATIN_LETTER = re.compile(f"[{_LATIN}]")
_FOREIGN_LETTER = regex.compile(rf"[\p{{L}}--[{_LATIN}]]", regex.V1)


def _latin_look_alike(char: str, targets: list[str]) -> str | None:
    same = str.isalpha if char.isalpha() else str.isalnum
    target = next((t for t in targets if len(t) == 1 and t.isascii() and same(t)), None)
    if target is None or _UNSPACED_LETTER.match(char) or ord(char) in _ORDINARY_LATIN:
        return None
    # UTS #39 writes every vertical stroke as "l"; a capital one is read as "I".
    return "I" if target == "l" and char.isupper() else target


@cache
def _plain_table() -> dict[int, str]:
    """Blanks, and the enclosed letters that NFKC leaves: (negative) circles, squares, flags."""
    blocks = (0x1F150, 0x1F170, 0x1F1E6)
    return _SPACES | {start + n: chr(ord("A") + n) for start in blocks for n in range(26)}


@cache
def _look_alikes() -> dict[int, str]:
    """Code point to ASCII letter or digit. About 1,700 entries, read once."""
    table: dict[int, str] = {}
    for block in _SMALL_CAPITALS:
        for code in block:
            name = unicodedata.name(chr(code), "")
            letter = re.fullmatch("LATIN LETTER SMALL CAPITAL ([A-Z])", name)
            if letter:
                table[code] = letter[1].lower()
    for char, others in confusables_data.items():
        if len(char) == 1 and not char.isascii():
            target = _latin_look_alike(char, [other["c"].strip("\u200e") for other in others])
            if target:
                table.setdefault(ord(char), target)
    # Letters whose prototype is no ASCII letter in the data, but whose look is one.
    table |= {ord(a): b for a, b in zip("τТтКкМмНнВвпгтκηωΤ", "tTtKkMmHhBbnrtknwT", strict=True)}
    return table


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def _is_english(word: str) -> bool:
    lower = word.lower()
    return lower in known_english() or lower in SHORT_WORDS


def _fold_look_alikes(text: str) -> tuple[str, int]:
    """Words that mix scripts are disguised, and words of look-alikes alone may be.

    They are true ones where words that no Latin one looks like have most of their script's letters,
    or where no word mixes it with another and few of them read as English.
    """
    table = _look_alikes()
    folds: dict[str, str] = {}
    whole: dict[str, dict[str, str]] = {}
    mixed: set[str] = set()
    sides: defaultdict[str, int] = defaultdict(int)  # letters of disguised words, less of others
    for word in set(_WORD.findall(text)):
        if word.isascii():
            continue
        folded = word.translate(table)
        strange = _FOREIGN_LETTER.search(folded)
        if strange is not None:
            if folded != word and 2 * len(_LATIN_LETTER.findall(word)) >= len(word):
                folds[word] = folded
            else:
                sides[_script(strange.group())] -= len(word)
            continue
        if folded == word:  # accents
            continue
        scripts = {_script(letter) for letter in _FOREIGN_LETTER.findall(word)}
        for script in scripts:
            sides[script] += len(word)
        if len(scripts) > 1 or _LATIN_LETTER.search(word):
            folds[word] = folded
            mixed |= scripts
        elif scripts and folded.isascii():
            whole.setdefault(min(scripts), {})[word] = folded
    for script, words in whole.items():
        longer = [folded for folded in words.values() if len(folded) > 1]
        english = 2 * sum(map(_is_english, longer)) >= len(longer)
        if sides[script] > 0 and (english or script in mixed):
            folds |= words
    return replace_words(_WORD, text, folds) if folds else (text, 0)


def fold_characters(text: str) -> tuple[str, int]:
    """NFKC, invisible rest and loose diacritics off, look-alikes to Latin.

    Expects a cleaned text: NFKC sorts piles of marks in quadratic time, and cleaning cuts them.
    Returns the text and the number of words with look-alikes.
    """
    if text.isascii():
        return text, 0
    text = _PILE.sub("", text).translate(_LONG_LIGATURES)
    text = _NOT_LUNATE.sub(lambda part: unicodedata.normalize("NFKC", part.group()), text)
    text = _INVISIBLE.sub("", text).translate(_plain_table())
    if "ı" in text and not _TURKISH.search(text):
        text = text.replace("ı", "i")
    if text.isascii():
        return text, 0
    text, look_alikes = _fold_look_alikes(text)
    return text.translate(_LUNATE), look_alikes


# --- words -----------------------------------------------------------------------------------

# The first pattern of each pair starts with a rare character, so that the search in plain text is
# fast; the second one takes the whole run.
_SPACED_HINT = re.compile(r"[ \n\t]\S[ \n\t]{1,7}\S[ \n\t]")
_SPACED = re.compile(r"(?<!\S)\S(?:[ \n\t]{1,7}\S(?!\S)){3,}")
_DOTTED_HINT = re.compile(r"[._*~|·•/-]\w[._*~|·•/-]\w[._*~|·•/-]")
_DOTTED = re.compile(r"(?<![^\W_])[^\W_](?:(?:[._*~|·•/-]| {1,7})[^\W_](?![^\W_])){3,}")
_SCATTERED_HINT = re.compile(r"[^a-zA-Z0-9][^\W_](?:[\W_]{1,8}[^\W_]){3}[\W_]")
_SCATTERED = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,8}[^\W_](?![^\W_])){9,}")
_BLANKS = re.compile(r"[ \n\t]+")
_DELIMITED_HINT = re.compile(r"([._*~|·•/-])(?!\1)\S\1")
_SPACED_GAPS = re.compile(r"([ \n\t]+)")
_SEPARATOR = re.compile(r"[ \n\t]+|[._*~|·•/-]")
_SEPARATORS = re.compile(rf"({_SEPARATOR.pattern})")
_LETTER = regex.compile(r"[\p{L}\p{M}]")
_HEX = re.compile(r"(?:0[xX])?(?=[0-9]*[A-Fa-f])[0-9A-Fa-f]{32,}")
_MIN_LETTERS = 5
_MIN_LETTER_SHARE = 0.75
_MIN_WORDS_SHARE = 0.1  # of letters, where gaps show the words; text in hex has more
_SPLIT, _LONG = 10, 20  # characters from which it may be several words, and surely is


@cache
def _known_shapes() -> frozenset[str]:
    return frozenset(map(leet_shape, known_english()))


@cache
def _shape_sizes() -> dict[str, frozenset[int]]:
    """The lengths of known words' shapes by their last two letters."""
    sizes: dict[str, set[int]] = {}
    for word in _known_shapes():
        if len(word) > 1:
            sizes.setdefault(word[-2:], set()).add(len(word))
    return {ending: frozenset(found) for ending, found in sizes.items()}


def _split_words(joined: str) -> str | None:
    """Blanks put back into "ignoreallrules"; None unless known words make up most of it.

    The split that covers the most, long words first: the sum of squared word lengths is maximal.
    """
    lower = leet_shape(joined.lower())
    known_shapes, sizes_by_ending = _known_shapes(), _shape_sizes()
    best = [0] * (len(lower) + 1)
    size_at = [1] * (len(lower) + 1)
    for end in range(1, len(lower) + 1):
        best[end] = best[end - 1]
        for size in sizes_by_ending.get(lower[end - 2 : end], ()):
            score = best[end - size] + size * size if size <= end else 0
            if score > best[end] and lower[end - size : end] in known_shapes:
                best[end], size_at[end] = score, size
    cuts = {len(joined)}
    known = 0
    end = len(joined)
    while end:
        size = size_at[end]
        if size > 1:
            known += size
            cuts |= {end - size, end}
        end -= size
    if known < _MIN_LETTER_SHARE * len(joined):
        return None
    return " ".join(joined[a:b] for a, b in pairwise(sorted(cuts | {0})))


def _joined(words: str) -> list[str]:
    """Words put together of single letters, which can be seen only now to mix scripts."""
    return (words if words.isascii() else _fold_look_alikes(words)[0]).split(" ")


def _join_spaced(match: re.Match[str]) -> str:
    """Single characters joined: where wider gaps show words, or where they are letters."""
    run = match.group()
    gaps = Counter(_BLANKS.findall(run))
    between = min(gaps, key=lambda gap: (len(gap), -gaps[gap]))
    words = _joined(
        "".join(
            part if at % 2 == 0 else "" if part == between else " "
            for at, part in enumerate(_SPACED_GAPS.split(run))
        )
    )
    letters, chars = len(_LETTER.findall(run)), sum(map(len, words))
    if letters < _MIN_LETTERS or gaps[between] * 2 < gaps.total():
        return run
    if letters >= _MIN_LETTER_SHARE * chars:
        at_least = _LONG if len(words) > 1 else _SPLIT
        return " ".join(_spread(word, at_least) for word in words)
    if len(words) == 1:
        # A sum, or a table's row, unless it could be decoded or read.
        if _HEX.fullmatch(words[0]):
            return words[0]
        return (_split_words(words[0]) if 2 * letters >= chars else None) or run
    longer = sum(len(word) > 1 for word in words)
    shown = letters >= _MIN_WORDS_SHARE * chars and 2 * longer >= len(words)
    return " ".join(words) if shown else run


@cache
def _delimited(sign: str) -> re.Pattern[str]:
    """Words, set apart by blanks, in which every second character is `sign`."""
    word = rf"\S(?:{re.escape(sign)}\S)*"
    return re.compile(rf"(?<!\S){word}(?:[ \n\t]{{1,7}}{word})*(?!\S)")


def _join_dotted(match: re.Match[str]) -> str:
    run = match.group()
    gaps = Counter(gap.group() for gap in _SEPARATOR.finditer(run, 1))
    # What stands between the letters; any other gap is between words.
    between = min(gaps, key=len) if run[1].isspace() else run[1]
    letters = sum(map(str.isalpha, run))
    others = len(run) - sum(len(gap) * n for gap, n in gaps.items()) - letters
    # Sums, tables of digits and rulers are not words.
    few = letters < _MIN_LETTERS or letters < _MIN_LETTER_SHARE * (letters + others)
    if few or gaps[between] * 2 < gaps.total():
        return run
    words = _joined(
        "".join(
            "" if part == between else " " if _SEPARATOR.fullmatch(part) else part
            for part in _SEPARATORS.split(run)
        )
    )
    return " ".join(map(_spread, words))


def _spread(word: str, at_least: int = _SPLIT) -> str:
    return (_split_words(word) if len(word) >= at_least else None) or word


def _join_delimited(match: re.Match[str]) -> str:
    words = _BLANKS.split(match.group())
    plain = _joined(" ".join(word[::2] for word in words))
    letters, chars = sum(c.isalpha() for w in plain for c in w), sum(map(len, plain))
    longer = sum(len(word) > 1 for word in plain)
    few = letters < _MIN_LETTERS or letters < _MIN_WORDS_SHARE * chars
    if few or 2 * longer < len(plain):
        return match.group()
    if len(plain) == 1:
        return _spread(plain[0])
    blanks = iter([*_BLANKS.findall(match.group()), ""])
    return "".join(word + next(blanks) for word in plain)


def _join_scattered(match: re.Match[str]) -> str:
    """Letters with anything between them, as "i, g, n. .o", where they read as words."""
    [letters] = _joined("".join(filter(str.isalnum, match.group())))
    few = 2 * sum(map(str.isalpha, letters)) < len(letters)
    return (None if few else _split_words(letters)) or match.group()


def join_spaced(text: str) -> tuple[str, int]:
    """Letters set apart by blanks or one delimiter joined; wider gaps become word boundaries.

    By anything else only where the letters read as English words.
    """
    runs = 0
    signs = {hint[1] for hint in _DELIMITED_HINT.finditer(text)}
    for sign in sorted(signs):
        joined, _ = _delimited(sign).subn(_join_delimited, text)
        runs += joined != text
        text = joined
    for hint, pattern, join in (
        (_SPACED_HINT, _SPACED, _join_spaced),
        (_DOTTED_HINT, _DOTTED, _join_dotted),
        (_SCATTERED_HINT, _SCATTERED, _join_scattered),
    ):
        if hint.search(text) is None:
            continue
        joined, _ = pattern.subn(join, text)
        runs += joined != text
        text = joined
    return text, runs


def fold_words(text: str) -> tuple[str, Counter[str]]:
    """Spaced-out letters joined and leetspeak undone, with counts of both."""
    text, spaced = join_spaced(text)
    text, leet = undo_leet(text)
    return text, +Counter(spaced_letters=spaced, leet=leet)
