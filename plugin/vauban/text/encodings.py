"""Decoders for base64, base32, hex, decimal codes, binary, Morse and escapes.

Each takes a text and yields the plausible texts it found encoded. Every pattern is linear: fixed
separators, possessive repeats, and a first character whose lookbehind fails inside a run.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterator, Mapping

from vauban.text.plausible import as_text, bits_to_bytes, known_words, plausible

# --- base64, base32 --------------------------------------------------------------------------

_BASE64_HINT = re.compile(r"[A-Z0-9](?<=[a-z].)")  # hardly any base64 is without
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}+(?:\r?\n[ \t]{0,8}[A-Za-z0-9+/_-]{4,}+)*+={0,2}")
_BASE64_URL = str.maketrans("-_", "+/")
_BASE64_SURE_CHARS = 16
_BASE32 = re.compile(r"[A-Z2-7](?<![A-Za-z0-9].)[A-Z2-7]{15,}+={0,6}(?![A-Za-z0-9])")
_PROSE = re.compile(r"[A-Za-z][A-Za-z ,.'!?:-]*")


def _base64_text(span: str, min_digits: int = 8) -> str | None:
    digits = "".join(span.split()).rstrip("=")
    if len(digits) < min_digits or not digits.isascii():
        return None
    digits = digits.translate(_BASE64_URL)
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    try:
        return as_text(binascii.a2b_base64(digits + "=" * (-len(digits) % 4)))
    except binascii.Error:
        return None


def _base64_candidates(span: str) -> Iterator[str]:
    """The span as a whole, then its lines, then what stands between slashes and dashes."""
    if _BASE64_HINT.search(span) is None:
        return
    whole = _base64_text(span)
    if whole is not None:
        yield whole
        return
    for line in span.split() if "\n" in span else [span]:
        text = _base64_text(line)
        if text is not None:
            yield text
            continue
        for piece in re.split(r"[/_+-]", line):
            text = _base64_text(piece) if len(piece) < len(line) else None
            if text is not None:
                yield text


def base64_spans(text: str) -> Iterator[str]:
    if _BASE64_HINT.search(text) is None:
        return
    long: list[str] = []
    short: list[re.Match[str]] = []
    for match in _BASE64.finditer(text):
        for found in _base64_candidates(match.group()):
            if len(found) * 4 >= _BASE64_SURE_CHARS * 3:
                long.append(found)
            elif _PROSE.fullmatch(found):
                short.append(match)
    # Short strings are often an accident: they count together, or when they are known words. Then
    # the shorter ones between them are read as well.
    words = [found for match in short for found in _base64_candidates(match.group())]
    if len(short) >= 3 or known_words(" ".join(words)):
        region = text[short[0].start() : short[-1].end() + len("YWxs YWxs")]
        found_words = (_base64_text(token, 4) for token in region.split())
        joined = " ".join(word for word in found_words if word and _PROSE.fullmatch(word))
        long = [joined, *(found for found in long if found not in joined)]
    yield from long


def base32_spans(text: str) -> Iterator[str]:
    for match in _BASE32.finditer(text):
        digits = match.group().rstrip("=")
        digits = digits[: len(digits) - (len(digits) % 8 in (1, 3, 6))]
        try:
            found = as_text(base64.b32decode(digits + "=" * (-len(digits) % 8)))
        except binascii.Error:
            continue
        if found is not None:
            yield found


# --- numbers ---------------------------------------------------------------------------------

_HEX = re.compile(
    r"[02-7c-eC-E](?<![0-9A-Za-z].)(?:(?<=0)x[0-9A-Fa-f]{2}|[0-9A-Fa-f])"
    r"(?:[ ,:;\n-]{0,2}(?:0x)?[0-9A-Fa-f]{2}){5,}+"
)
_NOT_HEX = re.compile("0x|[^0-9A-Fa-f]")
_CODE = r"(?:1[01][0-9]|12[0-6]|3[2-9]|[4-9][0-9])(?![0-9])"
_DECIMAL = re.compile(rf"[1-9](?<![0-9A-Za-z.].)[0-9]{{1,2}}(?:[ ,;]{{1,2}}{_CODE}){{6,}}+")
_OCTETS = re.compile(r"[01](?<![0-9A-Za-z.].)[01]{7}(?:[ ,\n]{0,2}[01]{8}){4,}+")
_SEPTETS = re.compile(r"[01](?<![0-9A-Za-z.].)[01]{6}(?:[ ,\n]{1,2}[01]{7}(?![01])){4,}+")


def hex_spans(text: str) -> Iterator[str]:
    for match in _HEX.finditer(text):
        groups = _NOT_HEX.sub(" ", match.group()).split()
        # Words set apart, or one message in lines or bytes of equal length.
        apart = len({len(group) for group in groups[:-1]}) > 1
        parts = groups if apart else ["".join(groups)]
        data = [bytes.fromhex(part[: len(part) & ~1]) for part in parts]
        found = as_text((b" " if apart else b"").join(data))
        if found is not None:
            yield found


def decimal_spans(text: str) -> Iterator[str]:
    for match in _DECIMAL.finditer(text):
        found = "".join(chr(int(code)) for code in re.findall("[0-9]+", match.group()))
        # Any list of small numbers is printable; only words tell.
        if plausible(found) and known_words(found):
            yield found


def binary_spans(text: str) -> Iterator[str]:
    for pattern, width in ((_OCTETS, 8), (_SEPTETS, 7)):
        for match in pattern.finditer(text):
            found = as_text(bits_to_bytes(re.sub("[^01]", "", match.group()), width))
            if found is not None:
                yield found


# --- Morse -----------------------------------------------------------------------------------

_MORSE = re.compile(r"[.-]{1,6}(?:(?: {0,3}[/|] {0,3}| {1,7}|\n)[.-]{1,6}){4,}+(?![.\w-])")
_MORSE_HINT = re.compile(r"[.-][ /|\n][.-]{1,6}[ /|\n]")
_MORSE_SIGNS = str.maketrans("·•∙⋅−–—_", "....----")
_MORSE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?"
_MORSE_CODES = """
.- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..-
-.-- --.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--..
"""
_MORSE_CODE: Mapping[str, str] = dict(zip(_MORSE_CODES.split(), _MORSE_LETTERS, strict=True))


def morse_spans(text: str) -> Iterator[str]:
    text = text.translate(_MORSE_SIGNS) if not text.isascii() or "_" in text else text
    if _MORSE_HINT.search(text) is None:
        return
    for match in _MORSE.finditer(text):
        words = re.split(r" *[/|] *| {2,}|\n", match.group())
        letters = [[_MORSE_CODE.get(code, "") for code in word.split()] for word in words]
        flat = [letter for word in letters for letter in word]
        # Rulers and table borders have one or two different "letters".
        if len({*flat} - {""}) >= 4 and flat.count("") <= 0.1 * len(flat):
            yield " ".join("".join(word) for word in letters)


# --- escapes ---------------------------------------------------------------------------------

_ESCAPE = re.compile(
    r"[%=\\&](?:(?<=%)[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2})*+|(?<==)[0-9A-F]{2}(?:=[0-9A-F]{2}){3,}+"
    r"|(?<=\\)(?:x[0-9A-Fa-f]{2}(?:\\x[0-9A-Fa-f]{2})*+|[0-7]{3}(?:\\[0-7]{3}){2,}+"
    r"|u[0-9A-Fa-f]{4}(?:\\u[0-9A-Fa-f]{4})*+|u\{[0-9A-Fa-f]{1,6}\}|U[0-9A-Fa-f]{8})"
    r"|(?<=&)\#?[0-9A-Za-z]{2,8};)"
)
_LETTER = re.compile("[A-Za-z]")
_CONTEXT_CHARS = 120


def _unescape(escape: str) -> str:
    if escape[0] == "&":
        return html.unescape(escape)
    if escape.startswith(("%", "=", "\\x")):
        try:
            return bytes.fromhex(re.sub(r"\\x|[%=]", "", escape)).decode()
        except UnicodeDecodeError:
            return escape
    if escape[1] in "uU":
        codes = [int(code.strip("{}"), 16) for code in re.split(r"\\[uU]", escape)[1:]]
    else:
        codes = [int(code, 8) for code in escape.split("\\")[1:]]
    if any(code > 0x10FFFF for code in codes):
        return escape
    # Two surrogates in a row are one character.
    joined = "".join(map(chr, codes)).encode("utf-16-le", "surrogatepass")
    return joined.decode("utf-16-le", "replace")


def escapes_spans(text: str) -> Iterator[str]:
    """The text around escapes with the escapes undone, if they hide letters or word breaks."""
    letters = wide = blanks = 0
    found: list[tuple[int, int, str]] = []
    for match in _ESCAPE.finditer(text):
        plain = _unescape(match.group())
        if plain == match.group():
            continue
        # "%43" alone is how Turkish writes 43 %; inside a word or a run it is an escape.
        around = text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 1]
        if match.group()[0] == "%" and len(match.group()) == 3 and not _LETTER.search(around):
            blanks += plain == " "
            continue
        letters += sum(char.isascii() and char.isalnum() for char in plain)
        # Accented letters are ordinary in HTML one at a time.
        if match.group()[0] != "&" or (found and found[-1][1] == match.start()):
            wide += sum(not char.isascii() and char.isalpha() for char in plain)
        blanks += plain.count(" ")
        found.append((*match.span(), plain))
    # A line feed, a quote or an ampersand has to be escaped; a letter does not.
    if not (letters >= 2 or wide >= 4 or blanks >= 3):
        return
    parts: list[str] = []
    end = 0
    for start, stop, plain in found:
        if start - end > 2 * _CONTEXT_CHARS and parts:
            parts.append(text[end : end + _CONTEXT_CHARS])
            yield "".join(parts)
            parts = []
            end = start - _CONTEXT_CHARS
        elif not parts:
            end = max(0, start - _CONTEXT_CHARS)
        parts += (text[end:start], plain)
        end = stop
    parts.append(text[end : end + _CONTEXT_CHARS])
    yield "".join(parts)
