"""An address is what a renderer makes of it, whatever it was written as."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sanitize import cut, cuts, make, said

WORDS = "and so it goes on "
FOREIGN = [
    "![x](https&#58;//evil.test/a)",
    "![x](https&colon;//evil.test/a)",
    "![x](&#104;ttps://evil.test/a)",
    "![x](&#0000000104;ttps://evil.test/a)",
    "![x](https\\://evil.test/a)",
    "![x](\\//evil.test/a)",
    "![x](/\\/evil.test/a)",
    "![x](&#47;/evil.test/a)",
    "![x](<https&#58;//evil.test/a>)",
    "![x](< https://evil.test/a>)",
    f"![x]({' ' * 300}https://evil.test/a)",
    f"![x](\n{' ' * 30}https://evil.test/a)",
    f"![{WORDS * 200} averylongwordofsomekind](https://evil.test/a)",
    "![a [b](https://ok.test/) d](https://evil.test/a)",
    "![a ![b](https://ok.test/) d](https://evil.test/a)",
    "![a \\] [b](https://ok.test/) d](https://evil.test/a)",
    "![a\n [b](https://ok.test/)\nd](https://evil.test/a)",
    "![a `]` [b](https://ok.test/) d](https://evil.test/a)",
    "![a ` [b](https://ok.test/) d](https://evil.test/a)",
    "![a <i title=']'>b</i> c](https://evil.test/a)",
    "](  ![x](https://evil.test/a)",
    "[1]: https&#58;//evil.test/a",
    "[1]:https\\://evil.test/a",
    "[1]: <https&#58;//evil.test/a>",
    f"[1]:{' ' * 300}https://evil.test/a",
    "<img alt='>' src=https://evil.test/a>",
    '<img alt=">" src="https://evil.test/a">',
    "<img alt='<b>' src=https://evil.test/a>",
    '<p title="  <img src=https://evil.test/a>',
    f"<img {'a=b ' * 900}src=https://evil.test/a>",
    "<img src='htt&#x70;://evil.test/a'>",
    '<img src = "&#104;ttps://evil.test/a">',
    "<img/src=&#104;ttps://evil.test/a>",
    "<img src=' &#104;ttps://evil.test/a'>",
    "<img src='https&colon;&sol;&sol;evil.test/a'>",
    '<img src="https:\\\\evil.test/a">',
    "<img src='\\\\evil.test/a'>",
    "<img src='/\\evil.test/a'>",
    "<img src='/\t/evil.test/a'>",
    "<p style='background:url(&#104;ttps://evil.test/a)'>",
    "<p style='background:url(\\68ttps://evil.test/a)'>",
    "<p style='background:url(\\000068 ttps://evil.test/a)'>",
    "<p style='background:\\75rl(\\2f\\2f evil.test/a)'>",
]
RUNNING = [
    "[x](java&#115;cript:alert)",
    "[x](javascript\\:alert)",
    "<a href='java&#115;cript:alert'>",
    "<a href='java\nscript:alert'>",
    "<a href='javascript&colon;alert'>",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_what_is_fetched_whatever_it_is_written_as(text: str) -> None:
    rules = make(allowed_hosts=("ok.test",))
    shown, stream = said(rules, [f"{WORDS}{text} {WORDS * 200}"])
    assert stream.findings["images", "redact"] > 0
    assert "//evil.test" not in shown
    assert list(stream.findings) == [("images", "redact")]


@pytest.mark.parametrize("text", RUNNING)
def test_what_runs_whatever_it_is_written_as(text: str) -> None:
    shown, stream = said(make(), [f"{WORDS}{text} {WORDS * 200}"])
    assert stream.findings["active", "redact"] > 0
    assert "cript:alert" not in shown


@pytest.mark.parametrize(
    "text", ["\\`<form>`", "\\\\\\`<form>`", "\\``<form>``", "\\`<i onload=a>`"]
)
@pytest.mark.parametrize("words", [0, 1, 60])
def test_an_escaped_backtick_begins_no_code(text: str, words: int) -> None:
    text = f"{WORDS * words}{text} {WORDS * words}"
    for parts in ([text], list(text)):
        _, stream = said(make(), parts)
        assert stream.findings["active", "redact"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "![x](images/a&amp;b.png)",
        "![x](a\\_b.png) and https://docs.test/a",
        "![x](https://ok.test/a\\_b.png)",
        "![x](https://ok.test/a?b=1&amp;c=2)",
        "<img src='https://ok.test/a?b=1&amp;c=2'>",
        "<img alt='it\\'s' src='a.png'> see https://docs.test/a",
        '<p title="a > b">text</p> see https://docs.test/a',
        "<b>don't</b> see https://docs.test/a",
        "<a href='https://docs.test/?a=1&amp;b=2'>x</a>",
        "[a](b\\_c), [docs](https://docs.test/a?b=1&c=2), [x](mailto:a@b.test)",
        "`a[i](b & c)`, f[1](a \\& b), d = {x[1]: 5} and https://docs.test/a",
        "the \\(x\\) and \\[y\\](z) of https://docs.test/a",
        "[x]: a note, see https://docs.test/a",
        "wow![1] (see https://docs.test/a), vec![1, 2] and [docs](https://docs.test/a)",
        "![x](https://ok.test/a.png) and [docs](https://docs.test/a)",
        "[![x](https://ok.test/a.svg)](https://docs.test/a)",
        "`vec![` begins it.\n\nSee [docs](https://docs.test/a) and [docs](https://docs.test/b)",
        "\\\\`<form>`, \\``<form>`, `C:\\`, `<form>`",
        "- `![`\n \n- [docs](https://docs.test/a)",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    rules = make(allowed_hosts=("ok.test",))
    for whole in (f"{WORDS}{text}", f"{text} {WORDS * 200}"):
        shown, stream = said(rules, [whole])
        assert shown == whole
        assert not stream.findings


pieces = st.sampled_from(
    [
        *FOREIGN[:8], *RUNNING, "](", "]", "(", " ", ")", "<", ">", "\\", "&", "&#58;", "//", ":",
        "https", "evil.test/a", "<img alt=", "src=", "'", '"', "\n", "x", "é", "!", "![", "`", "[",
        "[b](c)", "<i a=']'>",
        " " * 9, "\\`", "<form>", "java", "script:", "a" * 120,
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(text=st.lists(pieces, max_size=16).map("".join), cuts=cuts, quiet=st.booleans())
def test_any_cut_is_the_whole(text: str, cuts: list[int], quiet: bool) -> None:
    text = f"{WORDS * 60 if quiet else ''}{text} {WORDS * 60}"
    whole, one = said(make(), [text])
    for parts in (cut(text, cuts), list(text)):
        again, stream = said(make(), parts)
        assert again == whole
        assert stream.findings == one.findings
