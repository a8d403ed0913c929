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

# Rules by plugin; one of these stands in whatever those of them can match that heed case.
_PLUGINS: Final = {
    "artifactory": ("AKC", "AP"),
    "aws": ("A3T", "ABIA", "ACCA", "AKIA", "ASIA"),
    "azure_storage_key": ("AccountKey=",),
    "basic_auth": ("@",),
    "cloudant": (),
    "discord": (".",),
    "github_token": ("gh",),
    "gitlab_token": ("gl", "GR1348941"),
    "ibm_cloud_iam": (),
    "ibm_cos_hmac": (),
    "jwt": ("eyJ",),
    "mailchimp": ("-us",),
    "npm": (":_authToken=",),
    "openai": ("T3BlbkFJ",),
    "pypi_token": ("pypi-Ag",),
    "sendgrid": ("SG.",),
    "slack": (),
    "softlayer": (),
    "square_oauth": ("sq0csp-",),
    "stripe": ("k_live_",),
    "telegram_token": (":",),
    "twilio": ("AC", "SK"),
}
# Younger than the rule set: keys of model providers, and tokens with a longer form.
_YOUNGER: Final = {
    r"sk-(?:proj|svcacct|admin|ant-[a-z0-9]+)-[\w-]{20,}": "sk-",
    r"github_pat_\w{22,}": "github_pat_",
    r"hf_[A-Za-z0-9]{30,}": "hf_",
    r"AIza[\w-]{35}": "AIza",
    r"xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+": "xapp-",
    r"npm_[A-Za-z0-9]{36}": "npm_",
    r"vbn_[a-z0-9]{12}_[\w-]{30,}": "vbn_",
}
# Beside letters that are not ASCII these may make a rule heed a word that has nothing else.
_WITHOUT_RUN: Final = ("xox", "slack", "cloudant")
_LIKE_ASCII: Final = ("\u0130", "\u0131", "\u017f", "\u212a")  # in any case: an i, s or k
RUN_CHARS: Final = r"[A-Za-z0-9+/_=-]"
MIN_RUN_CHARS: Final = 20
"""So many of `RUN_CHARS` in a row are in each word that a rule heeds, if it has none of what
follows."""
SHORT_MARKS: Final = ("eyJ", "xox", "hooks.slack", ":_authToken=", "xapp-")
SHORT_KEY: Final = r"A(?:KC|P[0-9A-F])[A-Za-z0-9]{8}"
"""Also heeded is an address with a password (`://`, and `@` behind it)."""
# One of these stands in whatever the other rules can match.
_NAMES: Final = ("key", "pwd", "pw", "pass", "token", "xox", "slack", "cloudant", "softlayer")
# Between a name and its value, if it is not one of the other kinds.
_ASSIGNED = re.compile(
    r"(?i)(?:key|pwd|pw|pass(?:word)?|token)[\"']?\]? *[=: ]|aws|xox|slack|cloudant|softlayer"
)
# The same for ASCII in small letters, name by name: many times as fast as an alternation.
_SIGN = r"[\"']?\]? *[=: ]"
_BEFORE_SIGN: Final = {"key": "", "pw": "d?", "pass": "(?:word)?", "token": ""}
_ASSIGNED_AFTER: Final = {
    name: re.compile(more + _SIGN) for name, more in _BEFORE_SIGN.items()
}  # fmt: skip
_NEEDS_NO_SIGN: Final = ("aws", "xox", "slack", "cloudant", "softlayer")
_NAMED = re.compile(
    r"(?i)(?:secret|token|passw(?:or)?d|passphrase|api[ _-]?key|access[ _-]?key|private[ _-]?key"
    r"|credential|bearer|authorization)\W{0,12}(?:is|was|=|:)?\W{0,6}$"
)
_SECRET_NAMES: Final = (
    "secret", "token", "pass", "key", "credential", "bearer", "authorization",
)  # fmt: skip
_DRAWN = re.compile(rf"{RUN_CHARS}{{{MIN_RUN_CHARS},}}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_DIGITS = b"0123456789"
_MIN_NAMED_CHARS = 24
# What the rules that do not heed case take for a value, but for those of Slack's.
_NAMED_VALUE = re.compile(r"[A-Za-z]{24}|[A-Za-z0-9/+_-]{40}")
_VALUE_LETTER = re.compile(r"[A-Za-z0-9/+_-]")
_MIN_BITS = 3.6
_MIN_HEX_BITS = 3.0
_MIN_HEX_CHARS = 32
_MARGIN_BITS = 1e-6


@cache
def _heeding() -> tuple[re.Pattern[str], tuple[tuple[str, re.Pattern[str]], ...]]:
    """Finds the marks of the rules that heed case, and each mark with its rules."""
    marked = [(mark, re.compile(rule)) for rule, mark in _YOUNGER.items()]
    for name, marks in _PLUGINS.items():
        if heeding := [rule.pattern for rule in _denylist(name) if not rule.flags & re.IGNORECASE]:
            joined = re.compile("|".join(f"(?:{pattern})" for pattern in heeding))
            marked += [(mark, joined) for mark in marks]
    return re.compile("|".join(re.escape(mark) for mark, _ in marked)), tuple(marked)


@cache
def _others() -> re.Pattern[str]:
    """The rules that do not heed case."""
    rules = [rule for name in _PLUGINS for rule in _denylist(name) if rule.flags & re.IGNORECASE]
    patterns = [
        re.sub(r"\((?![?*])", "(?:", rule.pattern) if _plain(rule) else rule.pattern
        for rule in rules
    ]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def _plain(rule: re.Pattern[str]) -> bool:
    """Whether each "(" of a pattern opens a group (none is escaped or in a set)."""
    return rule.pattern.count("(") == len(re.findall(r"(?<![\\\[])\(", rule.pattern))


def _denylist(name: str) -> Iterator[re.Pattern[str]]:
    module = importlib.import_module(f"detect_secrets.plugins.{name}")
    for found in vars(module).values():
        if isinstance(found, type) and found.__module__ == module.__name__:
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
    any_mark, marked = _heeding()
    if any_mark.search(text, first, end + 1) is None:
        return None
    near = text[first : end + 1]
    best = None
    for mark, rule in marked:
        if mark in near:
            at = _found(rule, text, first, start, end)
            if at is not None and (best is None or at < best):
                best = at
    return best


def named_start(text: str, start: int, end: int) -> int | None:
    """The same by the rules that read what stands before the word."""
    first = max(0, start - CONTEXT_CHARS)
    near = text[first:end]
    low = near.lower()
    if "xox" not in low and low.isascii():
        if end - start < _MIN_NAMED_CHARS:
            return None
        if "slack" not in low and near.isascii() and not _may_hold_value(text, start, end):
            return None
    return _found(_others(), text, first, start, end) if _assigns(near, low) else None


def may_assign(text: str) -> bool:
    """Whether `named_start` may find anything in the words of a text."""
    return _assigns(text, text.lower())


def _assigns(text: str, low: str) -> bool:
    if not any(name in low for name in _NAMES):
        return False
    if not text.isascii():
        return _ASSIGNED.search(text) is not None
    if any(name in low for name in _NEEDS_NO_SIGN):
        return True
    for name, sign in _ASSIGNED_AFTER.items():
        at = low.find(name)
        while at >= 0:
            if sign.match(low, at + len(name)):
                return True
            at = low.find(name, at + 1)
    return False


def _may_hold_value(text: str, start: int, end: int) -> bool:
    """Whether a word is long enough for a value, or goes on with one that was cut."""
    if _NAMED_VALUE.search(text, start, end) is not None:
        return True
    return start > 0 and _VALUE_LETTER.match(text, start - 1, start) is not None


def _found(rule: re.Pattern[str], text: str, first: int, start: int, end: int) -> int | None:
    for found in rule.finditer(text[first : end + 1]):
        if found.end() > start - first and found.start() < end - first:
            return max(first + found.start(), start)
    return None


def is_named(text: str, start: int) -> bool:
    """Whether what stands before a word says that a credential follows, or the word is an
    assignment to such a name."""
    before = text[max(0, start - CONTEXT_CHARS) : start]
    return may_be_named(before) and _NAMED.search(before) is not None


def may_lack_a_run(text: str) -> bool:
    """Whether a rule may heed a word without a run or mark because of what is not ASCII."""
    if text.isascii():
        return False
    low = text.lower()
    return any(name in low for name in _WITHOUT_RUN) or any(sign in text for sign in _LIKE_ASCII)


def may_be_named(text: str) -> bool:
    """Whether a text may hold such a name at all."""
    low = text.lower()
    return not text.isascii() or any(name in low for name in _SECRET_NAMES)


def drawn_span(word: str) -> tuple[int, int] | None:
    """The part of a word that looks drawn at random, like a key; None when nothing does."""
    for found in _DRAWN.finditer(word):
        piece = found.group().strip("=")
        if _HEX.fullmatch(piece):
            random = len(piece) >= _MIN_HEX_CHARS and _has_bits(piece, _MIN_HEX_BITS)
        else:
            # Paths and hyphenated names are long, too, but hold few digits.
            digits = len(piece) - len(piece.encode().translate(None, _DIGITS))
            random = digits * 20 >= len(piece) and _has_bits(piece, _MIN_BITS)
        if random:
            return found.span()
    return None


def _has_bits(text: str, least: float) -> bool:
    """Whether a text has at least so many bits for each character.

    Mostly the number of different characters tells: it has most where all are equally frequent,
    and least where all but one stand once.
    """
    certain = _certain(len(text), len(set(text)), least)
    return _bits(text) >= least if certain is None else certain


@lru_cache(maxsize=4_096)
def _certain(size: int, kinds: int, least: float) -> bool | None:
    """What is certain without counting the characters."""
    if math.log2(max(kinds, 1)) < least - _MARGIN_BITS:
        return False
    others = size - kinds + 1
    if size and math.log2(size) - _n_log_n(others) / size > least + _MARGIN_BITS:
        return True
    return None


def _bits(text: str) -> float:
    """Shannon entropy of the characters, in bits for each, rounded to what is told apart."""
    size = max(len(text), 1)
    return round(math.log2(size) - sum(map(_n_log_n, Counter(text).values())) / size, 9)


@lru_cache(maxsize=4_096)
def _n_log_n(n: int) -> float:
    return n * math.log2(n)
