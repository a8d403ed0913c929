"""Arguments have one reading, and a rule is kept only by what is surely inside of it."""

from __future__ import annotations

import contextlib
import json
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.arguments import (
    NotArguments,
    at,
    canonical,
    is_at_most,
    is_below,
    is_within_hosts,
    parse,
    texts_in,
)

names = st.text("abcz019_. \u00fc\u4e2d\U0001f600\u202e", max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(names, values))
def test_what_is_canonical_means_the_same_and_stays(value: dict[str, object]) -> None:
    text = canonical(value)
    assert text.isascii()
    assert text.isprintable() or text == "{}"
    assert parse(text) == value == parse(json.dumps(value, indent=1))
    assert canonical(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', '{"to":1,"To":2}',
     '{"to":1,"\uff54o":2}',
     '{"a":{"b":1,"b":1}}', '{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}', "[]",
     "null", '"x"', "1", "{", "{}x", "\ufeff{}", "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000,
     '{"a":' + "9" * 5_000 + "}"],
)  # fmt: skip
def test_what_is_not_one_plain_object(text: str) -> None:
    with pytest.raises(NotArguments):
        parse(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(NotArguments):
        assert isinstance(parse(text), dict)


def test_a_name_is_found_in_any_case() -> None:
    assert at({"Mail": {"TO": ["a", "b"]}}, "mail.to") == ["a", "b"]


def test_what_is_hidden_shows() -> None:
    shown = canonical({"to": "a\u202e\u200b\u0430@b", "x": "\ud800"})
    assert shown == '{"to":"a\\u202e\\u200b\\u0430@b","x":"\\ud800"}'


def test_paths_into_arguments() -> None:
    tree = {"to": ["a", ["b"]], "deep": [{"x": 1}, {"x": [2, None]}, {}, 3], "n": None}
    assert at(tree, "to") == ["a", "b"]
    assert at(tree, "deep.x") == [1, 2]
    assert at(tree, "n") == at(tree, "gone.x") == at(tree, "to.x") == []


INSIDE = [
    "a@example.org",
    "A.B+c@Example.ORG",
    "Ann <ann@mail.example.org>",
    "a@example.org, b@example.org",
    "https://example.org/x?y=1",
    "http://hooks.example.org:8080",
    "a@example.org.",
]
OUTSIDE = [
    "",
    " ",
    "a@evil.test",
    "a@example.org,b@evil.test",
    "a@example.org; b@evil.test",
    "a@example.org b@evil.test",
    '"a@example.org" <b@evil.test>',
    "a@example.org <b@evil.test>",
    "<a@evil.test> a@example.org",
    "a@evilexample.org",
    "a@example.org.evil.test",
    "a@evil.test(a@example.org)",
    "a@evil.test%example.org",
    "evil%evil.test@example.org",
    "evil.test!bob@example.org",
    "a@example.org\r\nBcc: b@evil.test",
    "https://example.org@evil.test/",
    "https://evil.test/example.org",
    "https://evil.test#.example.org",
    "https://evil.test\\@example.org",
    "//example.org",
    "ftp://example.org",
    "example.org",
    "javascript://example.org/x",
    "a@exаmple.org",
    "a@example.org\u202e",
    "http://[::1",
    "a@@example.org",
    "a@evil.test,",
    "https://example.org\t.evil.test",
    "Ann <ann@example.org",
    None,
    7,
    ["a@example.org"],
]


@pytest.mark.parametrize("value", INSIDE)
def test_recipients_inside(value: str) -> None:
    assert is_within_hosts(value, ("example.org",))


@pytest.mark.parametrize("value", OUTSIDE)
def test_recipients_outside(value: object) -> None:
    assert not is_within_hosts(value, ("example.org",))


@given(st.text(max_size=30))
def test_no_text_without_the_host_is_inside(text: str) -> None:
    assert is_within_hosts(text, ("example.org",)) <= ("example.org" in text.lower())


@pytest.mark.parametrize(
    ("value", "holds"),
    [(0, True), (100, True), (99.5, True), (100.01, False), (-1, False), (True, False),
     ("100", False), (10**400, False), (None, False), ([1], False)],
)  # fmt: skip
def test_amounts(value: object, holds: bool) -> None:
    assert is_at_most(value, 100) is holds


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ("/srv/data/a.txt", True),
        ("/srv/data", True),
        ("/srv//./data/x", True),
        ("//srv/data/x", True),
        ("/srv/data/../x", False),
        ("/srv/database", False),
        ("srv/data/x", False),
        ("", False),
        ("/srv/data/%2e%2e/x", False),
        ("~/x", False),
        ("/srv/data/$HOME", False),
        ("/srv/data/\0", False),
        ("/srv\\data/x", False),
        ("file:///srv/data/x", False),
        ("/srv/data/*", False),
        (7, False),
    ],
)
def test_paths(value: object, holds: bool) -> None:
    assert is_below(value, ("/srv/data",)) is holds


@given(st.text(alphabet="/.srvdatx", max_size=24))
def test_a_path_that_is_inside_stays_so_when_it_is_resolved(text: str) -> None:
    if is_below(text, ("/srv/data",)):
        resolved = "/" + posixpath.normpath(text).lstrip("/")
        assert resolved == "/srv/data" or resolved.startswith("/srv/data/")


@pytest.mark.parametrize(
    ("text", "names", "texts", "values"),
    [
        ('{"a": "x", "b": [1, "y", {"c": "z", "a": null}], "d": true}', "abcad", "xyz", "x1yz"),
        ('{"a": "x", "a": "y"}', "aa", "xy", "xy"),
        ('["x", [["y"]], 2, "z"]', "", "xyz", "xy2z"),
        ("", "", "", ""),
    ],
)
def test_all_texts_in_their_order(text: str, names: str, texts: str, values: str) -> None:
    assert texts_in(text) == (list(names), list(texts), list(values))


@pytest.mark.parametrize("text", ['{"a": ', "[" * 100_000])
def test_what_is_no_json_is_one_text(text: str) -> None:
    assert texts_in(text) == ([], [text], [text])


@pytest.mark.parametrize("number", ["-1.50e3", "0.25", "9" * 5_000])
def test_a_number_is_a_text_as_it_is_written(number: str) -> None:
    found = texts_in(f'{{"a": "x", "b": {number}, "c": "y"}}')
    assert found == (list("abc"), ["x", "y"], ["x", number, "y"])
