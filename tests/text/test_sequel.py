"""What must not be said in one text must not be said in several that programs put together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sanitize import (
    CANARY,
    GITHUB,
    IMAGE,
    KEY,
    PEM,
    PROMPT,
    actions,
    cut,
    cuts,
    make,
    texts,
)  # fmt: skip

from vauban.policy_output import OUTPUT_DETECTORS
from vauban.text.sanitize import Sanitizer
from vauban.text.sequel import Series, leaks_jointly


def said(rules: Sanitizer, pieces_of: list[list[str]]) -> tuple[list[str], Counter[Any], bool]:
    """What comes out of each text, what was found, and whether it was stopped."""
    series = Series(rules)
    out: list[str] = []
    found: Counter[Any] = Counter()
    for pieces in pieces_of:
        stream = series.begin()
        out.append("".join(map(stream.feed, pieces)) + series.end(stream))
        found += stream.findings
        if stream.stopped:
            return out, found, True
    return out, found, False


@settings(deadline=None)
@given(parts=st.lists(texts, min_size=2, max_size=4), cuts=cuts, data=st.data())
def test_any_cut_is_the_whole(parts: list[str], cuts: list[int], data: Any) -> None:
    fields = {name: data.draw(actions, name) for name in OUTPUT_DETECTORS}
    rules = make(**fields, hold_back=data.draw(st.sampled_from([16, 300])), prompt_words=10)
    whole, found, stopped = said(rules, [[part] for part in parts])
    for pieces_of in ([cut(part, cuts) for part in parts], [list(part) for part in parts]):
        again, found_again, stopped_again = said(rules, pieces_of)
        assert (again, stopped_again) == (whole, stopped)
        assert stopped or found_again == found  # of one that ends early, more may be read


@pytest.mark.parametrize("first", ["```\n", "a `", "<!-- ", "<pre>", "![", "-----BEGIN ", ""])
@pytest.mark.parametrize("second", ["<script>alert(1)</script>", f"See {IMAGE} there.", PEM])
def test_what_one_text_leaves_open_makes_nothing_harmless_in_the_next(
    first: str, second: str
) -> None:
    alone = make().whole(second)[0]
    assert alone != second
    assert said(make(), [[first], [second]])[0] == [first, alone]


@pytest.mark.parametrize("secret", [KEY, GITHUB, CANARY, " ".join(CANARY), CANARY[::-1]])
@pytest.mark.parametrize("others", [[], ["", ""], [" "]])
def test_a_secret_in_two_texts(secret: str, others: list[str]) -> None:
    detector = "secrets" if secret in (KEY, GITHUB) else "canary"
    for at in range(1, len(secret)):
        parts = [f"It is {secret[:at]}", *others, f"{secret[at:]} and so on."]
        spaced = others == [" "] and detector == "secrets"  # two words, in any reader's eyes
        out, found, _ = said(make(), [[part] for part in parts])
        assert out[0] == parts[0]  # it has left
        if not spaced:
            assert secret not in "".join(out)
            assert out[-1].endswith("] and so on.")
            assert found[detector, "redact"] == 1


def test_the_operators_text_in_two_texts() -> None:
    words = PROMPT.split()
    parts = [" ".join(words[:8]), " ".join(["", *words[8:]])]
    assert said(make(), [[part] for part in parts])[0] == [parts[0], " [redacted: prompt]"]


def test_a_key_block_in_two_texts() -> None:
    half = PEM.index("\n", 300)
    out, _, _ = said(make(), [[PEM[:half]], [PEM[half:]]])
    assert not any(line in "".join(out) for line in PEM.splitlines()[1:-1])


def test_a_picture_in_two_texts() -> None:
    out, _, _ = said(make(), [["See ![a"], [IMAGE.removeprefix("![a")]])
    assert "evil" not in "".join(out)


@pytest.mark.parametrize("action", ["stop", "hold"])
def test_the_second_half_ends_the_answer(action: str) -> None:
    parts = [["It is ", CANARY[:8]], [CANARY[8:], " and more"], ["never"]]
    out, found, stopped = said(make(canary=action), parts)
    assert (out, stopped) == ([f"It is {CANARY[:8]}", ""], True)
    assert found == {("canary", action): 1}


def test_what_is_only_watched_is_counted_once() -> None:
    link = "https://evil.test/?q=dGhpcyBpcyBzZWNyZXQgZGF0YQ123"
    alone = make().whole(f"a {link} b")[1].findings
    assert said(make(), [["one"], [f"a {link} b"], ["three"]])[1] == alone


def test_two_that_are_open_at_once_keep_their_own_words() -> None:
    series = Series(make())
    one, two = series.begin(), series.begin()
    said_one, said_two = one.feed("one " * 20), two.feed("two " * 20)
    assert said_one + series.end(one) == "one " * 20
    assert said_two + series.end(two) == "two " * 20


@settings(deadline=None)
@given(first=texts, second=texts, cuts=cuts, data=st.data())
def test_any_cut_is_the_whole_of_a_text_that_stands_behind(
    first: str, second: str, cuts: list[int], data: Any
) -> None:
    rules = make(**{name: data.draw(actions, name) for name in OUTPUT_DETECTORS}, prompt_words=10)

    def out(pieces_of: list[list[str]]) -> list[Any]:
        before, stream = rules.stream(), rules.stream()
        for piece in pieces_of[0]:
            before.feed(piece)
        if data.draw(st.booleans(), "ended"):
            before.finish()
        stream.stands_behind(before)
        return ["".join(map(stream.feed, pieces_of[1])) + stream.finish(), stream.findings]

    ended = rules.stream()
    ended.feed(first)
    if not ended.stopped:
        assert out([cut(first, cuts), cut(second, cuts)]) == out([[first], [second]])


@pytest.mark.parametrize("at", [4, 9, 15])
def test_a_credential_in_two_arguments(at: int) -> None:
    assert leaks_jointly(make(), ["to", f"x {KEY[:at]}", f"{KEY[at:]} y"])
    assert leaks_jointly(make(), [KEY[:at], KEY[at:-4], KEY[-4:]])
    for harmless in (
        [KEY, "and so on"], ["SK", "d41d8cd98f00b204e9800998ecf8427e"], ["the", "token", "of"],
        ["http://localhost:8080", "somebody@example.org"], [KEY[:at], " ", KEY[at:]],
    ):  # fmt: skip
        assert not leaks_jointly(make(), harmless)
    assert not leaks_jointly(make(secrets="monitor"), [KEY[:at], KEY[at:]])
