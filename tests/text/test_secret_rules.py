"""Each rule of the set is in force, and ordinary long words are not taken for keys."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.text import secret_rules
from vauban.text.quiet import notable_words
from vauban.text.secret_rules import drawn_span, is_named, secret_start

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3hJ6lM9nP2qR5tU8wX1zA4cD7fG0iK3"
HEX = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.mark.parametrize(
    "text",
    [
        f"AKIA{'Q3EGRSEX7PLMNBVC'}", f"aws_secret_key = '{LETTERS[:40]}'",
        f"AccountKey={LETTERS[:60]}{LETTERS[:28]}", "https://me:secret1@host.test/",
        f"cloudant_key: {HEX}", f"M{LETTERS[:23]}.{LETTERS[:6]}.{LETTERS[:27]}",
        f"ghp_{LETTERS[:36]}", f"github_pat_{LETTERS[:40]}", f"glpat-{LETTERS[:20]}",
        f"ibm_cloud_api_key = {LETTERS[:44]}", f"cos_hmac_secret_access_key: {HEX[:48]}",
        f"eyJ{LETTERS[:20]}.{LETTERS[:30]}.{LETTERS[:20]}", f"{HEX[:32]}-us12",
        f"npm_{LETTERS[:36]}", f"sk-{LETTERS[:20]}T3BlbkFJ{LETTERS[:20]}",
        f"sk-proj-{LETTERS[:40]}", f"sk-ant-api03-{LETTERS[:40]}", f"hf_{LETTERS[:34]}",
        f"AIza{LETTERS[:35]}", f"pypi-AgEIcHlwaS5vcmc{LETTERS}{LETTERS}",
        f"SG.{LETTERS[:22]}.{LETTERS[:43]}", "xoxb-123456789012-abcdefghijkl",
        f"https://hooks.slack.com/services/T{LETTERS[:8]}/B{LETTERS[:8]}/{LETTERS[:24]}",
        f"softlayer_key: {HEX}", f"sq0csp-{LETTERS[:43]}", f"sk_live_{LETTERS[:24]}",
        f"123456789:{LETTERS[:35]}", f"SK{HEX[:32]}", f"AC{HEX[:32]}",
    ],
)  # fmt: skip
def test_credentials_of_every_kind(text: str) -> None:
    text = f"So it is: {text} there."
    words = [found.span() for found in re.finditer(r"[A-Za-z0-9_\-+/=.~:%@?&#$*^]{16,}", text)]
    assert any(secret_start(text, a, b) is not None for a, b in words)


@pytest.mark.parametrize(
    "word",
    [
        "internationalization", "src/vauban/text/secret_rules.py", "the-quick-brown-fox-jumps",
        "https://example.org/a/page", "AbstractSingletonProxyFactoryBean", "1234567890123456",
        "2026-11-26T02:00:00.000", "----------------------------", "________________________",
        "com.example.project.module", "snake_case_name_that_is_long", "v1.2.3-beta.4+build.567",
    ],
)  # fmt: skip
def test_ordinary_long_words(word: str) -> None:
    text = f"see {word} there"
    assert secret_start(text, 4, 4 + len(word)) is None
    assert drawn_span(word) is None


def test_drawn_words() -> None:
    for word in (LETTERS[:24], HEX[:40], f"id={LETTERS[:30]}"):
        span = drawn_span(word)
        assert span is not None
        assert span[1] == len(word)


@pytest.mark.parametrize(
    "before",
    ["password: ", "the API key is ", "SECRET_TOKEN=", "Authorization: Bearer ", "token `"],
)
def test_names_of_credentials(before: str) -> None:
    assert is_named(before + "x", len(before))
    assert not is_named("the sum is ", 11)


def test_the_names_are_needed_by_all_rules_that_do_not_heed_case() -> None:
    """The quick look for a name must not hide a rule that needs none."""
    others = secret_rules._others()
    for name in secret_rules._NAMES:
        assert name in others.pattern
    assert not others.search(f"a {HEX} b {LETTERS} c")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_a_rule_can_find_is_never_passed_over(data: st.DataObject) -> None:
    rule = data.draw(st.sampled_from(_single_rules()))
    found = data.draw(st.from_regex(rule))
    text = f"{found} and so on"
    words = [one.span() for one in re.finditer(r"[A-Za-z0-9_\-+/=.~:%@?&#$*^]{16,}", text)]
    notable = set(notable_words(text, 0, len(text), counts_drawn=True)[0])
    for a, b in words:
        first = max(0, a - secret_rules.CONTEXT_CHARS)
        near = max(0, a - 1)
        rules = [(one, near) for one in _heeding()] + [(secret_rules._others(), first)]
        heeded = any(secret_rules._found(one, text, at, a, b) is not None for one, at in rules)
        assert (secret_start(text, a, b) is not None) == heeded
        assert not heeded or a in notable


def test_ordinary_letters_beyond_ascii_do_not_slow_a_text_down() -> None:
    assert not secret_rules.may_lack_a_run("Où est le siège de la société ? Ask in Köln.")
    for text in ("a \u017fum", "35 \u212a", "é xoxb-", "é Slack"):
        assert secret_rules.may_lack_a_run(text)


def _single_rules() -> list[re.Pattern[str]]:
    rules = [rule for name in secret_rules._PLUGINS for rule in secret_rules._denylist(name)]
    return [*rules, *map(re.compile, secret_rules._YOUNGER)]


def _heeding() -> list[re.Pattern[str]]:
    return [rule for rule in _single_rules() if not rule.flags & re.IGNORECASE]


@given(
    text=st.text("aB3+", max_size=40) | st.text("0123456789abcdef", max_size=80)
    | st.text(LETTERS, max_size=90),
    above=st.sampled_from([-1e-9, 0.0, 1e-9]),
)  # fmt: skip
def test_the_quick_ways_to_the_bits_of_a_word_are_exact(text: str, above: float) -> None:
    bits = secret_rules._bits(text)
    for least in (3.0, 3.6, bits + above):
        assert secret_rules._has_bits(text, least) == (bits >= least)
