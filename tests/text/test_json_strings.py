"""Escapes that JSON does not need hide nothing, and what is no JSON does not become some."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_sanitize import CANARY, KEY, cut, cuts, make, out, said

from vauban.text.json_strings import JsonStrings, PlainEscapes

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
written = st.lists(
    st.sampled_from(["\\", "u", "0041", "00", "4", "\\u0041", "\\/", '"', "x", "\\\\", "é", "\n"]),
    max_size=12,
).map("".join)


def plain(pieces: list[str]) -> str:
    escapes = PlainEscapes()
    return "".join(map(escapes.feed, pieces)) + escapes.rest


def escaped(text: str, every: int) -> str:
    """The same JSON with more escapes in its strings."""
    made, inside, at = [], False, 0
    while at < len(text):
        step = 1
        if text[at] == "\\":
            step = 6 if text[at + 1] == "u" else 2
        piece = text[at : at + step]
        inside ^= piece == '"'
        if inside and step == 1 and piece != '"' and ord(piece) < 0x10000 and at % every == 0:
            piece = f"\\u{ord(piece):04x}" if at % 2 else f"\\u{ord(piece):04X}"
        made.append(piece)
        at += step
    return "".join(made)


@example(value="\\/", every=1, is_ascii=True)
@given(value=values, every=st.integers(1, 3), is_ascii=st.booleans())
def test_it_says_the_same(value: Any, every: int, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    assert json.loads(plain([escaped(text, every)])) == value
    assert plain([text.replace("/", "\\/")]) == plain([text])


def test_the_mark_comes_where_the_first_character_goes() -> None:
    """The first one may be the beginning of a word of JSON's, and stays."""
    text = "t" + "J6rCJzL35gryzluEQsH1KaWoaw7pFr" + " is it" * 50
    rules = make(entropy="redact", hold_back=16)
    whole, _ = said(rules, [text], json=True)
    assert whole.startswith("t[redacted: entropy]")
    assert said(rules, list(text), json=True)[0] == whole


@given(text=written, cuts=cuts)
@example(text=r"\u\\\u0041", cuts=[])
def test_any_cut_is_the_whole(text: str, cuts: list[int]) -> None:
    assert plain(cut(text, cuts)) == plain(list(text)) == plain([text])


@given(text=written)
@example(text="\\u00\\u0034\\u0031")
def test_what_is_no_json_stays_none(text: str) -> None:
    def is_json(text: str) -> bool:
        try:
            json.loads(f'"{text}"', strict=False)
        except ValueError:
            return False
        return True

    assert is_json(plain([text])) == is_json(text)


@pytest.mark.parametrize("secret", [KEY, CANARY])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_an_escaped_secret(secret: str, every: int) -> None:
    text = escaped(json.dumps({"q": f"it is {secret} and more"}), every)
    assert text.count("\\u") > 4
    assert secret not in json.dumps(json.loads(out(text, json=True)))
    body = json.dumps({"q": "wJalr/XUtnFEMIK7MDENG/bPxRfiCYzzMPLEKEY01"})
    assert out(body.replace("/", "\\/"), json=True) == out(body, json=True)


BROKEN = [
    '{"a": "\\u1", "b": "%s"}', '{"a": "\\u12", "b": "%s"}', '{"a": "\\x", "b": "%s"}',
    '{"a": %s}', "%s", "{a: '%s'}", '{"a": tr%s}', '{"a": "x"} %s', "\\ %s",
    '{"a": 1 "b" %s}', "{\"a\": '\"', 'b': '%s'}",
    '[1, true, false, null, -1.5e+3, NaN, Infinity, %s]',
]  # fmt: skip


@pytest.mark.parametrize("around", BROKEN)
@pytest.mark.parametrize("spelt", [KEY, "".join(f"\\u{ord(c):04x}" for c in KEY)])
def test_a_secret_in_what_is_no_json(around: str, spelt: str) -> None:
    """A program that forgives more than the standard may still read it."""
    text = around % spelt
    for pieces in ([text], list(text)):
        said_of, stream = said(make(), pieces, json=True)
        assert spelt not in said_of
        assert KEY not in said_of
        assert stream.findings == {("secrets", "redact"): 1}


@given(value=values, number=st.floats() | st.integers())
def test_what_stands_outside_of_strings_stays(value: Any, number: float) -> None:
    text = json.dumps([value, number])
    strings = JsonStrings()
    left = strings.drop(text, "") + strings.drop('"x"', "")
    assert left.endswith('""')
    assert json.loads(left[:-2])[1] == number or number != number
