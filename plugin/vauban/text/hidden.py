"""Messages written in characters that nobody sees, decoded for the detector.

Cleaning takes these characters out of the model's copy; what they spelled is still evidence.
Covers: ASCII in tag characters, also with visible letters of other alphabets between them; bytes
in variation selectors (alone or one per visible character), and two-symbol binary in zero-width
characters. Does not cover ciphers over them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from vauban.text.plausible import as_text, bits_to_bytes

_TAG = "[\U000e0020-\U000e007e]"
_TAGS = re.compile(f"{_TAG}+(?:\n+{_TAG}+)*")  # there is no tag for the end of a line
_TAGGED = re.compile(f"{_TAG}.*{_TAG}", re.DOTALL)
_UNTAGGED = {0xE0000 + code: chr(code) for code in range(0x20, 0x7F)}
_ASCII = re.compile("[\x00-\x09\x0b-\x7f]+")
_FLAG = re.compile("\U0001f3f4[\U000e0061-\U000e007a]{5}\U000e007f")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]+")
_ZERO_WIDTH = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u2060-\u2064\ufeff]+")
_MIN_BITS = 40  # five letters; ordinary text with a few joiners stays below


def _selector_byte(char: str) -> int:
    code = ord(char)
    return code - 0xFE00 if code < 0xE0100 else code - 0xE0100 + 16


def _tag_text(text: str) -> str:
    letters = "".join(_TAGS.findall(_FLAG.sub("", text)))
    return letters.translate(_UNTAGGED)


def _tagged_text(text: str) -> str:
    """Tags with the letters between them that have none: those of any alphabet but ASCII."""
    tagged = _TAGGED.search(_FLAG.sub("", text))
    spelt = _ASCII.sub("", tagged.group()) if tagged else ""
    return "" if _TAGS.fullmatch(spelt) else spelt.translate(_UNTAGGED)


def _selector_text(text: str) -> str:
    runs = _SELECTORS.findall(text)
    data = bytes(_selector_byte(char) for run in runs for char in run)
    # The emoji and text selectors of ordinary text (bytes 14 and 15) are not part of a message.
    return as_text(data) or as_text(data.replace(b"\x0e", b"").replace(b"\x0f", b"")) or ""


def _binary_text(text: str) -> str:
    symbols = "".join(_ZERO_WIDTH.findall(text))
    if len(symbols) < _MIN_BITS:
        return ""
    common = [char for char, _ in Counter(symbols).most_common(2)]
    if len(common) < 2:
        return ""
    for zero in common:
        bits = "".join("0" if char == zero else "1" for char in symbols if char in common)
        for width in (8, 7, 16):
            found = as_text(bits_to_bytes(bits, width))
            if found:
                return found
    return ""


def hidden_messages(text: str) -> Iterator[tuple[str, str]]:
    """(kind, message) for every invisible alphabet that spells something in the raw `text`."""
    if text.isascii():
        return
    for kind, decode in (
        ("hidden_tag", _tag_text),
        ("hidden_tag", _tagged_text),
        ("hidden_selector", _selector_text),
        ("hidden_binary", _binary_text),
    ):
        message = decode(text)
        if message.strip():
            yield kind, message
