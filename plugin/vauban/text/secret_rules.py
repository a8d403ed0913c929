"""What a credential looks like: the rules of detect-secrets, and words that look drawn at random.

A word is a run of the characters that credentials are made of. The rules read the word with what
stands before it, because some need a name to tell a key from any other number (`aws_secret = ...`).

Covers: credentials in one piece. Does not cover: those that the model was told to write in another
way (spaced, reversed, encoded), except when they are declared as canaries.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Final

CONTEXT_CHARS: Final = 80
"""How much before a word the rules may read."""
MIN_WORD_CHARS: Final = 16
"""No rule matches less, and no drawn word of less could be told from an ordinary one."""

_PLUGINS: Final = (
    "artifactory", "aws", "azure_storage_key", "basic_auth", "cloudant", "discord",
    "github_token", "gitlab_token", "ibm_cloud_iam", "ibm_cos_hmac", "jwt", "mailchimp", "npm",
    "openai", "pypi_token", "sendgrid", "slack", "softlayer", "square_oauth", "stripe",
    "telegram_token", "twilio",
)  # fmt: skip
# Younger than the rule set: keys of model providers, and tokens with a longer form.
_YOUNGER: Final = (
    r"sk-(?:proj|svcacct|admin|ant-[a-z0-9]+)-[\w-]{20,}",
    r"github_pat_\w{22,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"AIza[\w-]{35}",
    r"xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+",
    r"npm_[A-Za-z0-9]{36}",
    r"vbn_[a-z0-9]{12}_[\w-]{30,}",
)
BEYOND_ASCII: Final = re.compile("(?i)xox|slack|cloudant|[\u0130\u0131\u017f\u212a]")
"""Beside letters that are not ASCII this may make a rule heed a word that has nothing else."""
RUN_CHARS: Final = r"[A-Za-z0-9+/_=-]"
MIN_RUN_CHARS: Final = 20
"""So many of `RUN_CHARS` in a row are in each word that a rule heeds, if it has none of what
follows."""
SHORT_MARKS: Final = ("eyJ", "xox", "hooks.slack", ":_authToken=", "xapp-")
SHORT_KEY: Final = r"A(?:KC|P[0-9A-F])[A-Za-z0-9]{8}"
"""Also heeded is an address with a password (`://`, and `@` behind it)."""
# One of these stands in whatever the rules that heed case can match.
_MARKS: Final = (
    "AKC", "AP", "A3T", "ABIA", "ACCA", "AKIA", "ASIA", "AccountKey=", "@", ".", "gh", "gl",
    "GR1348941", "-us", ":", "T3BlbkFJ", "pypi-", "sq0csp-", "k_live_", "AC", "SK", "sk-", "_pat_",
    "hf_", "AIza", "xapp-", "npm_", "vbn_",
)  # fmt: skip
# And in whatever the others can.
_NAMES: Final = ("key", "pwd", "pw", "pass", "token", "xox", "slack", "cloudant", "softlayer")
# Between a name and its value, if it is not one of the other kinds.
_ASSIGNED = re.compile(
    r"(?i)(?:key|pwd|pw|pass(?:word)?|token)[\"']?\]? *[=: ]|aws|xox|slack|cloudant|softlayer"
)
_NAMED = re.compile(
    r"(?i)(?:secret|token|passw(?:or)?d|passphrase|api[ _-]?key|access[ _-]?key|private[ _-]?key"
    r"|credential|bearer|authorization)\W{0,12}(?:is|was|=|:)?\W{0,6}$"
)
_SECRET_NAMES: Final = (
    "secret", "token", "pass", "key", "credential", "bearer", "authorization",
)  # fmt: skip
_DRAWN = re.compile(rf"{RUN_CHARS}{{{MIN_RUN_CHARS},}}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_NO_DIGITS = dict.fromkeys(map(ord, "0123456789"))
_MIN_NAMED_CHARS = 24
_MIN_BITS = 3.6
_MIN_HEX_BITS = 3.0
_MIN_HEX_CHARS = 32
_MARGIN_BITS = 1e-6


@cache
def _rules() -> tuple[re.Pattern[str], ...]:
    """The rules in two patterns: those that heed case, which read one character before the word,
    and the others, which read all of the context."""
    heeding: list[str] = list(_YOUNGER)
    others: list[str] = []
    for name in _PLUGINS:
        module = importlib.import_module(f"detect_secrets.plugins.{name}")
        for rule in _denylist(module):
            pattern = re.sub(r"\((?![?*])", "(?:", rule.pattern) if _plain(rule) else rule.pattern
            (others if rule.flags & re.IGNORECASE else heeding).append(f"(?:{pattern})")
    return re.compile("|".join(heeding)), re.compile("|".join(others), re.IGNORECASE)


def _plain(rule: re.Pattern[str]) -> bool:
    """Whether each "(" of a pattern opens a group (none is escaped or in a set)."""
    return rule.pattern.count("(") == len(re.findall(r"(?<![\\\[])\(", rule.pattern))


def _denylist(module: object) -> Iterator[re.Pattern[str]]:
    for found in vars(module).values():
        if isinstance(found, type) and found.__module__ == getattr(module, "__name__", ""):
            rules = getattr(found, "denylist", ())
            yield from rules if isinstance(rules, (list, tuple)) else ()


def secret_start(text: str, start: int, end: int) -> int | None:
    """Where in `text[start:end]`, one word, a credential begins; None when there is none.

    Reads up to `CONTEXT_CHARS` before the word and one character after it.
    """
    at = plain_start(text, start, end)
    return named_start(text, start, end) if at is None else at


def plain_start(text: str, start: int, end: int) -> int | None:
    """The same by the rules that read only one character before the word."""
    first = max(0, start - 1)
    near = text[first : end + 1]
    for mark in _MARKS:
        if mark in near:
            return _found(_rules()[0], text, first, start, end)
    return None


def named_start(text: str, start: int, end: int) -> int | None:
    """The same by the rules that read what stands before the word."""
    first = max(0, start - CONTEXT_CHARS)
    low = text[first:end].lower()
    if end - start < _MIN_NAMED_CHARS and "xox" not in low and low.isascii():
        return None
    for name in _NAMES:
        if name in low and _ASSIGNED.search(text, first, end):
            return _found(_rules()[1], text, first, start, end)
    return None


def _found(rule: re.Pattern[str], text: str, first: int, start: int, end: int) -> int | None:
    for found in rule.finditer(text[first : end + 1]):
        if found.end() > start - first and found.start() < end - first:
            return max(first + found.start(), start)
    return None


def is_named(text: str, start: int) -> bool:
    """Whether what stands before a word says that a credential follows, or the word is an
    assignment to such a name."""
    before = text[max(0, start - CONTEXT_CHARS) : start]
    low = before.lower()
    if before.isascii() and not any(name in low for name in _SECRET_NAMES):
        return False
    return _NAMED.search(before) is not None


def drawn_span(word: str) -> tuple[int, int] | None:
    """The part of a word that looks drawn at random, like a key; None when nothing does."""
    for found in _DRAWN.finditer(word):
        piece = found.group().strip("=")
        if _HEX.fullmatch(piece):
            random = len(piece) >= _MIN_HEX_CHARS and _has_bits(piece, _MIN_HEX_BITS)
        else:
            # Paths and hyphenated names are long, too, but hold few digits.
            digits = len(piece) - len(piece.translate(_NO_DIGITS))
            random = digits * 20 >= len(piece) and _has_bits(piece, _MIN_BITS)
        if random:
            return found.span()
    return None


def _has_bits(text: str, least: float) -> bool:
    """Whether a text has at least so many bits for each character.

    Mostly the number of different characters tells: it has most where all are equally frequent,
    and least where all but one stand once.
    """
    size, kinds = len(text), len(set(text))
    if math.log2(max(kinds, 1)) < least - _MARGIN_BITS:
        return False
    others = size - kinds + 1
    if size and math.log2(size) - _n_log_n(others) / size > least + _MARGIN_BITS:
        return True
    return _bits(text) >= least


def _bits(text: str) -> float:
    """Shannon entropy of the characters, in bits for each, rounded to what is told apart."""
    size = max(len(text), 1)
    return round(math.log2(size) - sum(map(_n_log_n, Counter(text).values())) / size, 9)


@lru_cache(maxsize=4_096)
def _n_log_n(n: int) -> float:
    return n * math.log2(n)
