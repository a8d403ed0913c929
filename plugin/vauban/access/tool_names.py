"""What a tool's name says, however it is written.

Names come from models, clients and the tool servers that clients trust: `deleteFile`,
`delete-file`, `mcp__files__DELETE_FILE`, full-width letters or a Cyrillic `е` are one name here.

Covers: case, separators, look-alike and invisible characters, the namespaces of MCP clients, verbs
written together with what they act on (`sendemail`). Does not cover: a destructive tool with a
harmless name. That is what rules are for.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import regex

from vauban.text.fold import fold_characters

MAX_NAME_CHARS: Final = 256
_MOST_PASSES: Final = 8
_INVISIBLE: Final = regex.compile(r"[\p{C}\p{M}]+")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD: Final = regex.compile(r"[^\p{L}\p{N}]+")
_NUMBER_BESIDE: Final = regex.compile(r"(?<=\p{L})(?=\p{N})|(?<=\p{N})(?=\p{L})")
_MCP: Final = re.compile(r"mcp__.+?__", re.IGNORECASE)
_NAMESPACE: Final = re.compile(r"__|[./:]+")
# What a verb is written together with.
_OBJECTS: Final = frozenset(
    {
        "account", "accounts", "all", "cmd", "code", "command", "data", "database", "db", "dir",
        "directory", "email", "emails", "event", "events", "file", "files", "folder", "funds",
        "index", "invoice", "mail", "mails", "message", "messages", "money", "order", "payment",
        "query", "record", "records", "rf", "row", "rows", "script", "sms", "sql", "table",
        "tables", "user", "users",
    }
)  # fmt: skip


def plain(name: str) -> str:
    """The letters and digits of a name in lower case: `sendEmail` and `send-email` are one.

    Namespaces stay apart, by dots: `read__file` is not `read_file`.
    """
    for _ in range(_MOST_PASSES):  # letters that come together may look like others then
        parts = ("".join(_words(part)) for part in _NAMESPACE.split(_folded(name)))
        known, name = name, ".".join(filter(None, parts))
        if name == known:
            break
    return name


def suffixes(name: str) -> tuple[str, ...]:
    """What is left of a name when namespaces are taken off its front, the longest first."""
    folded = _folded(name)
    ends = [match.end() for match in _NAMESPACE.finditer(folded)]
    return tuple(plain(folded[end:]) for end in ends)


def is_destructive(name: str, verbs: Collection[str]) -> bool:
    """Whether one of these verbs is a word of the name. An MCP server's own name is none of it.

    :param verbs: as `plain` writes them.
    """
    folded = _folded(name)
    if match := _MCP.match(folded):
        folded = folded[match.end() :]
    words = {*_words(folded), *_words(folded.casefold())}
    return any(word in verbs or _joined(word, verbs) for word in words)


def _joined(word: str, verbs: Collection[str]) -> bool:
    return any(word.startswith(verb) and word[len(verb) :] in _OBJECTS for verb in verbs)


def _folded(name: str) -> str:
    # In lower case some letters get a mark (`İ`), others the look of a Latin one (`Ɯ`).
    small = (c if c.isascii() else c.casefold() for c in fold_characters(name)[0])
    return fold_characters(_INVISIBLE.sub("", "".join(small)))[0]


def _words(folded: str) -> list[str]:
    spaced = _NUMBER_BESIDE.sub(" ", _CAMEL.sub(" ", folded))
    return [word.casefold() for word in _NO_WORD.split(spaced) if word]
