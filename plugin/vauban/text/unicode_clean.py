"""What is taken out of a text before a model gets it, and what stays.

The rule: a code point goes when it is invisible (or means nothing) where it stands; it stays where
some orthography needs it. Nothing visible is replaced. In particular no normalisation form is
applied: NFC already changes CJK compatibility ideographs in names, and the compatibility
characters carry meaning to a reader (x², ℝ, ½, ﬁ, full-width punctuation in Chinese and Japanese).
NFKC is safe for the detector's copy only (`fold.py`).

========================  =====================================================================
taken out                 stays
========================  =====================================================================
tag characters            in the three RGI flags (England, Scotland, Wales)
variation selectors       one, after a base it is defined for (emoji, ideograph, Mongolian, ...)
ZWJ, ZWNJ                 after letters and marks of scripts that join, and in emoji sequences
zero-width space          beside scripts written without spaces (Khmer, Thai, Lao, Myanmar, ...)
soft hyphen, BOM, WJ,     never: they show nothing, and a model reads the same text without them
invisible operators,
fillers
bidi embeds, overrides    never (deprecated by UAX #9; overrides make text read differently)
bidi marks, isolates      on a line with right-to-left letters, not inside a left-to-right word
private use, surrogates   never
unassigned                reserved pictographs and ideographs: a newer Unicode may know them
C0, C1 controls           tab, LF, CR; VT, FF and NEL become LF, the separators 1C-1F a space
combining marks           the first 4 general diacritics of a pile, the first 10 marks in all
========================  =====================================================================

Each stage only looks at neighbours that no later stage removes, so cleaning twice is cleaning once.
Properties come from `regex`: the interpreter's own tables are years older than today's emoji.
"""

from __future__ import annotations

import re
from collections import Counter

import regex

_CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LINE_BREAKS = dict.fromkeys(map(ord, "\x0b\x0c\x85"), "\n") | dict.fromkeys(range(0x1C, 0x20), " ")

_TAG = "\U000e0000-\U000e007f"
_SELECTOR = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_INVISIBLE = (
    "\u00ad\u17b4\u17b5\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_JOINER = "\u200c\u200d"
_BIDI_MARK = "\u061c\u200e\u200f\u2066-\u2069"
_BIDI_FORCED = "\u202a-\u202e"
_ZERO_WIDTH = f"{_INVISIBLE}{_JOINER}\u034f\u115f\u1160\u180e\u200b"

# Diacritics that any script may borrow; zalgo is made of these.
GENERAL_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_MAX_GENERAL_MARKS = 4
_MAX_MARKS = 10  # the Tibetan stack of the Kalachakra monogram has 8


def _scripts(names: str) -> str:
    return "".join(rf"\p{{scx={name}}}" for name in names.split())


_CURSIVE = _scripts("Arab Syrc Mand Mong Nkoo Phag Mani Adlm Rohg Sogd Phlp")
_MONGOLIAN = "\u1820-\u1878\u1880-\u18aa"  # letters, without the separators of the block
_INDIC = _scripts(
    "Deva Beng Guru Gujr Orya Taml Telu Knda Mlym Sinh Khmr Mymr Tibt Bali Java Sund Cakm Gran"
    " Kthi Newa Sidd Tirh Modi Nand Lepc Limb Mtei Saur Takr Shrd Brah Khar Cham Lana"
)
_UNSPACED = _scripts("Khmr Thai Laoo Mymr Tibt Java Bali Lana Cham Tavt Talu Tale")


def _v1(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.V1 | regex.VERBOSE)


_SUSPECT = _v1(
    rf"[{_CONTROL}\p{{Cs}}\p{{Co}}\p{{Cn}}{_TAG}{_SELECTOR}{_ZERO_WIDTH}{_BIDI_MARK}"
    rf"{_BIDI_FORCED}]|[\p{{M}}]{{{_MAX_GENERAL_MARKS + 1}}}"
)
_UNASSIGNED = (
    r"[\p{Cn}--[\p{Extended_Pictographic}\U00020000-\U0002fffd\U00030000-\U0003fffd"
    rf"{_TAG}{_INVISIBLE}]]"
)
_ALWAYS = _v1(rf"""
    (?P<surrogate>[\p{{Cs}}]+) | (?P<private_use>[\p{{Co}}]+) | (?P<zero_width>[{_INVISIBLE}]+)
  | (?P<bidi>[{_BIDI_FORCED}]+) | (?P<control>[{_CONTROL}]) | (?P<unassigned>{_UNASSIGNED}+)
""")
_TAGS = _v1(rf"""
    (?P<keep>\U0001f3f4\U000e0067\U000e0062
        (?:\U000e0065\U000e006e\U000e0067 | \U000e0073\U000e0063\U000e0074
          | \U000e0077\U000e006c\U000e0073)
        \U000e007f)
  | (?P<tag>[{_TAG}]+)
""")
# StandardizedVariants.txt, emoji-variation-sequences.txt and the low part of the ideographic
# variation database. One selector per base; a second one in a row has no meaning (byte smuggling).
_SELECTORS = _v1(rf"""
    (?P<keep>
        (?<=[\p{{Emoji}}--[0-9\#*]])[\ufe0e\ufe0f]
      | (?<=[0-9\#*])\ufe0f(?=\u20e3)
      | (?<=\p{{Unified_Ideograph}})[\ufe00-\ufe02\U000e0100-\U000e011f]
      | (?<=[\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f])[\ufe00\ufe01]
      | (?<=[\p{{Sm}}0\p{{Script=Myanmar}}\p{{Script=Phags_Pa}}\p{{Script=Manichaean}}])\ufe00
      | (?<=\p{{Script=Egyptian_Hieroglyphs}})[\ufe00-\ufe06]
      | (?<=[{_MONGOLIAN}])[\u180b-\u180d\u180f]
    )
  | (?P<variation_selector>[{_SELECTOR}])
""")
_JOINERS = _v1(rf"""
    (?P<keep>
        (?<=[[{_CURSIVE}{_INDIC}]&&[\p{{L}}\p{{M}}]])[{_JOINER}]
      | (?<![\p{{L}}\p{{N}}\p{{M}}{_ZERO_WIDTH}{_BIDI_MARK}])[{_JOINER}](?=[[{_CURSIVE}]&&\p{{L}}])
      | (?<=[\p{{Extended_Pictographic}}\p{{Emoji_Modifier}}\ufe0f])\u200d
            (?=\p{{Extended_Pictographic}})
      | (?<=[[{_UNSPACED}]&&[\p{{L}}\p{{M}}\p{{N}}\p{{P}}]])\u200b
      | (?<![{_ZERO_WIDTH}{_BIDI_MARK}])\u200b(?=[[{_UNSPACED}]&&[\p{{L}}\p{{N}}\p{{P}}]])
      | (?<=[{_MONGOLIAN}{_SELECTOR}])\u180e(?=[{_MONGOLIAN}])
      | \u115f(?=[\u1161-\u11a7\ud7b0-\ud7c6]) | (?<=[\u1100-\u115e\ua960-\ua97c])\u1160
    )
  | (?P<zero_width>[{_JOINER}\u115f\u1160\u180e\u200b])
""")
_PILE = _v1(rf"[\p{{M}}{_JOINER}\u200b{_BIDI_MARK}]{{{_MAX_GENERAL_MARKS + 1},}}")
_NOT_MARKS = "\u061c\u200b\u200c\u200d\u200e\u200f\u2066\u2067\u2068\u2069"
_GENERAL_MARK = _v1(f"[{GENERAL_MARKS}]")
_MARK = _v1(r"\p{M}")
# The grapheme joiner keeps Hebrew and German marks in order: only between two marks.
_GRAPHEME_JOINER = _v1(
    r"(?P<keep>(?<=[\p{M}--\u034f])\u034f(?=[\p{M}--\u034f]))"
    r"|(?P<zero_width>\u034f)"
)
_RIGHT_TO_LEFT = _v1(r"[[\p{bc=R}\p{bc=AL}]&&\p{L}]")
_BIDI_RUN = _v1(rf"[{_BIDI_MARK}]+")
_LEFT_TO_RIGHT = r"[[\p{L}\p{N}]--[\p{bc=R}\p{bc=AL}]]"
_INSIDE_WORD = _v1(rf"(?<={_LEFT_TO_RIGHT})[{_BIDI_MARK}]+(?={_LEFT_TO_RIGHT})")
_MAX_BIDI_RUN = 4


class _Cleaner:
    """One text on its way through the stages; counts what was taken out."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def _take(self, match: regex.Match[str]) -> str:
        kind = match.lastgroup or ""
        if kind == "keep":
            return match.group()
        taken = match.group()
        self.found[kind] += len(taken)
        return _LINE_BREAKS.get(ord(taken), "") if kind == "control" else ""

    def _cut_pile(self, match: regex.Match[str]) -> str:
        general = marks = 0
        pile = match.group()
        for at, char in enumerate(pile):
            marks += bool(_MARK.match(char))
            general += bool(_GENERAL_MARK.match(char))
            if general > _MAX_GENERAL_MARKS or marks > _MAX_MARKS:
                # Back to the last mark that counts: a joiner must not be left at the cut.
                kept = pile[:at].rstrip(_NOT_MARKS)
                self.found["combining_pile"] += len(pile) - len(kept)
                return kept
        return pile

    def _drop_bidi(self, match: regex.Match[str]) -> str:
        self.found["bidi"] += len(match.group())
        return ""

    def _cut_bidi_run(self, match: regex.Match[str]) -> str:
        run = match.group()
        self.found["bidi"] += max(0, len(run) - _MAX_BIDI_RUN)
        return run[:_MAX_BIDI_RUN]

    def _bidi_line(self, line: str) -> str:
        if not _RIGHT_TO_LEFT.search(line):
            return _BIDI_RUN.sub(self._drop_bidi, line)
        return _BIDI_RUN.sub(self._cut_bidi_run, _INSIDE_WORD.sub(self._drop_bidi, line))

    def run(self, text: str) -> str:
        for stage in (_ALWAYS, _TAGS, _SELECTORS, _JOINERS):
            text = stage.sub(self._take, text)
        text = _PILE.sub(self._cut_pile, text)
        text = _GRAPHEME_JOINER.sub(self._take, text)
        if _BIDI_RUN.search(text):
            text = "\n".join(map(self._bidi_line, text.split("\n")))
        return text


def clean(text: str) -> tuple[str, Counter[str]]:
    """Take out what only smuggles. Idempotent, linear.

    Returns the text and how many code points of each kind were taken out.
    """
    if text.isascii():
        suspect = _ASCII_CONTROL.search(text) is not None
    else:
        suspect = _SUSPECT.search(text) is not None
    if not suspect:
        return text, Counter()
    cleaner = _Cleaner()
    return cleaner.run(text), +cleaner.found
