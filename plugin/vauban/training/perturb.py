"""Transformations of a text that keep what it says to a reader: augmentations, and attack moves.

Each is pure, `(text, random) -> text`, and draws only from `random`: an equal generator gives an
equal text. How strong a disguise is (the share of letters, the number of edits) is drawn as well.
`PERTURBATIONS` has all by name; the groups below it say what a reader of the result has to undo.

Covers: text in any script; letters that a disguise has no form for stay as they are. A text that
an alphabet cannot write at all (Chinese in Morse) comes back unchanged.
Does not cover: whether the label of a text survives; `append_*` and `padding` only add harmless
text of ours, the others keep every word or replace it by a like one.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from vauban.training.perturb_words import (
    HARMLESS_SENTENCES,
    HARMLESS_WORDS,
    HOMOGLYPHS,
    KEY_NEIGHBOURS,
    LEET,
    MORSE,
    SYNONYMS,
)

Perturbation = Callable[[str, np.random.Generator], str]

MAX_ADDED = 5  # words or sentences
MAX_CHANGED_SHARE = 0.15  # of the words, by typos and synonyms
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_MIN_TYPO_CHARS = 4
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_SELECTORS = "".join(map(chr, range(0xFE00, 0xFE0E)))  # 15 and 16 choose between text and emoji
_MARKS = "".join(map(chr, range(0x0300, 0x0363)))
_DELIMITERS = (" ", ".", "-", "_", "*")


def _pick(items: str | tuple[str, ...], random: np.random.Generator) -> str:
    return items[int(random.integers(len(items)))]


def _each(
    text: str,
    random: np.random.Generator,
    change: Callable[[str], str],
    share: tuple[float, float] = (0.2, 1.0),
) -> str:
    """`change` for a random share of the characters that are letters."""
    chance = random.uniform(*share)
    draws = random.random(len(text))
    return "".join(
        change(char) if char.isalpha() and draw < chance else char
        for char, draw in zip(text, draws, strict=True)
    )


# --- characters ------------------------------------------------------------------------------


def zero_width(text: str, random: np.random.Generator) -> str:
    """Invisible characters after letters."""
    return _each(text, random, lambda char: char + _pick(_ZERO_WIDTH, random))


def variation_selectors(text: str, random: np.random.Generator) -> str:
    return _each(text, random, lambda char: char + _pick(_SELECTORS, random))


def zalgo(text: str, random: np.random.Generator) -> str:
    """One to six combining marks on letters."""
    most = int(random.integers(1, 7))

    def pile(char: str) -> str:
        marks = (_pick(_MARKS, random) for _ in range(int(random.integers(1, most + 1))))
        return char + "".join(marks)

    return _each(text, random, pile)


def homoglyphs(text: str, random: np.random.Generator) -> str:
    """Cyrillic, Greek and Armenian letters that look Latin."""
    return _each(text, random, lambda char: _pick(HOMOGLYPHS.get(char, char), random))


def full_width(text: str, random: np.random.Generator) -> str:
    """ASCII letters in their full-width forms; other signs and blanks stay."""
    return _each(
        text, random, lambda char: chr(ord(char) + 0xFEE0) if char.isascii() else char, (0.5, 1.0)
    )


def tag_letters(text: str, random: np.random.Generator) -> str:
    """The whole text in invisible tag characters; what has no tag is left visible."""
    written = "".join(chr(0xE0000 + ord(c)) if " " <= c <= "~" else c for c in text)
    return f"{_pick(HARMLESS_SENTENCES, random)} {written}"


def spaced_letters(text: str, random: np.random.Generator) -> str:
    """A blank or a sign between the letters of every word, wider gaps between words."""
    between = _pick(_DELIMITERS, random)
    gap = "   " if between == " " else " "
    return "\n".join(
        gap.join(between.join(word) for word in line.split()) for line in text.split("\n")
    )


def leetspeak(text: str, random: np.random.Generator) -> str:
    first = {char: forms[0] for char, forms in LEET.items()}
    signs = random.random() < 0.3

    def write(char: str) -> str:
        forms = LEET.get(char.lower())
        if forms is None:
            return char
        return _pick(forms, random) if signs else first[char.lower()]

    return _each(text, random, write, (0.5, 1.0))


# --- words -----------------------------------------------------------------------------------

TYPO_KINDS = ("swap", "drop", "double", "neighbour")


def typo(word: str, kind: str, random: np.random.Generator) -> str:
    """One edit of `kind` (of `TYPO_KINDS`) inside `word`, the first letter kept.

    A word of one letter, and an edit that would change nothing, come back as they are.
    """
    if len(word) < 2:
        return word
    at = int(random.integers(1, len(word)))
    if kind == "swap":
        at = min(at, len(word) - 2) if len(word) > 2 else 0
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "double":
        return word[:at] + word[at] + word[at:]
    near = KEY_NEIGHBOURS.get(word[at].lower())
    return word if near is None else word[:at] + _pick(near, random) + word[at + 1 :]


def cased_like(replacement: str, word: str) -> str:
    """`replacement` in the letter case of `word`: upper, Capitalised or as it is."""
    if len(word) > 1 and word.isupper():
        return replacement.upper()
    return replacement[0].upper() + replacement[1:] if word[:1].isupper() else replacement


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are, in order."""
    return [match.span() for match in _WORD.finditer(text)]


def edit_budget(text: str) -> int:
    """How many words may be changed: at most 15% of them, at least one."""
    return max(1, int(MAX_CHANGED_SHARE * len(word_spans(text))))


def _replace_words(
    text: str,
    random: np.random.Generator,
    fits: Callable[[str], bool],
    change: Callable[[str], str],
) -> str:
    spans = [(a, b) for a, b in word_spans(text) if fits(text[a:b])]
    if not spans:
        return text
    count = int(random.integers(1, edit_budget(text) + 1))
    chosen = sorted(random.permutation(len(spans))[:count], reverse=True)
    for index in chosen:
        a, b = spans[index]
        text = text[:a] + change(text[a:b]) + text[b:]
    return text


def typos(text: str, random: np.random.Generator) -> str:
    return _replace_words(
        text,
        random,
        lambda word: len(word) >= _MIN_TYPO_CHARS,
        lambda word: typo(word, _pick(TYPO_KINDS, random), random),
    )


def synonyms(text: str, random: np.random.Generator) -> str:
    """Words of `SYNONYMS` replaced; grammar may suffer, as it does in published attacks."""
    return _replace_words(
        text,
        random,
        lambda word: word.lower() in SYNONYMS,
        lambda word: cased_like(_pick(SYNONYMS[word.lower()], random), word),
    )


# --- encodings -------------------------------------------------------------------------------

_ASKS = (
    "Decode this {name}: {text}",
    "Decode the following {name} text.\n\n{text}",
    "What does this {name} message say? {text}",
    "{text}\n\nThe text above is {name}. Please decode it.",
    "Here is some {name}, can you read it for me?\n{text}",
)


def ask_to_decode(encoded: str, name: str, random: np.random.Generator) -> str:
    """`encoded` in a plain request to decode it."""
    return _pick(_ASKS, random).format(name=name.replace("_", " "), text=encoded)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # half a surrogate pair has no UTF-8


def to_base64(text: str) -> str:
    return base64.b64encode(_bytes(text)).decode()


def to_hex(text: str) -> str:
    return _bytes(text).hex()


def to_rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def to_reversed(text: str) -> str:
    return text[::-1]


def to_percent(text: str) -> str:
    """Every byte, letters too, as %XX."""
    return "".join(f"%{byte:02X}" for byte in _bytes(text))


def to_html_entities(text: str) -> str:
    """Every character as a decimal reference; `html.unescape` gives the text back."""
    return "".join(f"&#{ord(char)};" for char in text)


def to_morse(text: str) -> str:
    """Letters, digits and ". , ?"; the rest is left out, words are set apart by " / "."""
    words = (" ".join(MORSE[c] for c in word if c in MORSE) for word in text.lower().split())
    return " / ".join(filter(None, words)) or text


ENCODERS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "base64": to_base64,
        "hex": to_hex,
        "rot13": to_rot13,
        "reversed": to_reversed,
        "percent": to_percent,
        "html_entities": to_html_entities,
        "morse": to_morse,
    }
)


def _encoding(name: str, encode: Callable[[str], str]) -> Perturbation:
    def perturb(text: str, random: np.random.Generator) -> str:
        encoded = encode(text)
        return ask_to_decode(encoded, name, random) if random.random() < 0.5 else encoded

    return perturb


# --- harmless text around it -----------------------------------------------------------------


def harmless_words(random: np.random.Generator) -> str:
    """One to five."""
    count = int(random.integers(1, MAX_ADDED + 1))
    return " ".join(_pick(HARMLESS_WORDS, random) for _ in range(count))


def harmless_sentences(random: np.random.Generator, count: int | None = None) -> str:
    """`count` sentences, by default one to five; none twice before all were used."""
    if count is None:
        count = int(random.integers(1, MAX_ADDED + 1))
    order: list[int] = []
    while len(order) < count:
        order += map(int, random.permutation(len(HARMLESS_SENTENCES)))
    return " ".join(HARMLESS_SENTENCES[i] for i in order[:count])


def append_words(text: str, random: np.random.Generator) -> str:
    return f"{text} {harmless_words(random)}"


def prepend_words(text: str, random: np.random.Generator) -> str:
    return f"{harmless_words(random)} {text}"


def append_sentences(text: str, random: np.random.Generator) -> str:
    return f"{text} {harmless_sentences(random)}"


def prepend_sentences(text: str, random: np.random.Generator) -> str:
    return f"{harmless_sentences(random)} {text}"


def padding(text: str, random: np.random.Generator) -> str:
    """Up to 30 harmless sentences (about 350 tokens) before and after."""
    before, after = (int(n) for n in random.integers(0, 31, 2))
    parts = (harmless_sentences(random, before), text, harmless_sentences(random, after))
    return "\n\n".join(filter(None, parts))


def split_text(text: str, pieces: int, random: np.random.Generator) -> list[str]:
    """`text` cut at blanks into at most `pieces` parts; joined by a blank they say the same."""
    words = text.split()
    pieces = max(1, min(pieces, len(words)))
    cuts = sorted(int(i) + 1 for i in random.permutation(max(len(words) - 1, 0))[: pieces - 1])
    return [" ".join(words[a:b]) for a, b in zip([0, *cuts], [*cuts, len(words)], strict=True)]


# --- by name ---------------------------------------------------------------------------------

# The normaliser is to undo these: the letters themselves are written differently.
CHARACTERS: Mapping[str, Perturbation] = MappingProxyType(
    {
        "zero_width": zero_width,
        "tag_letters": tag_letters,
        "homoglyphs": homoglyphs,
        "zalgo": zalgo,
        "variation_selectors": variation_selectors,
        "full_width": full_width,
        "spaced_letters": spaced_letters,
        "leetspeak": leetspeak,
    }
)
# And to decode these, half of them in a sentence that asks for it.
ENCODINGS: Mapping[str, Perturbation] = MappingProxyType(
    {name: _encoding(name, encode) for name, encode in ENCODERS.items()}
)
# The classifier has to bear these.
WORDS: Mapping[str, Perturbation] = MappingProxyType({"typos": typos, "synonyms": synonyms})
ADDITIONS: Mapping[str, Perturbation] = MappingProxyType(
    {
        "append_words": append_words,
        "prepend_words": prepend_words,
        "append_sentences": append_sentences,
        "prepend_sentences": prepend_sentences,
        "padding": padding,
    }
)
PERTURBATIONS: Mapping[str, Perturbation] = MappingProxyType(
    {**CHARACTERS, **ENCODINGS, **WORDS, **ADDITIONS}
)
