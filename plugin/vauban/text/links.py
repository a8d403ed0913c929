"""Links, pictures and markup in what a model says: where they point, and what they would run.

A picture or another resource that the reader's program fetches by itself carries data out without
a click: its address is enough. A link needs a click, so it counts only when it carries data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, urlsplit

from vauban.text.secret_rules import drawn_span

# Where an address begins inside a word: a scheme, or two slashes of one.
_ADDRESS = re.compile(
    r"(?i)(?:(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,15}:(?=/|[a-z0-9])|(?<![:\w/])//)"
)
_SCRIPT = re.compile(
    r"(?i)(?<![a-z0-9])(?:(?:javascript|vbscript|livescript):[^\s]"
    r"|data:(?:text/html|image/svg|application/x?ht?ml))"
)
_HANDLER = re.compile(r"(?i)^/?on[a-z]{3,20}(?:=|$)")
_TAG = re.compile(r"/?([A-Za-z][A-Za-z0-9:-]*)")
_ACTIVE_TAGS: Final = frozenset(
    {
        "script", "iframe", "frame", "frameset", "object", "embed", "applet", "form", "meta",
        "base", "link", "style", "svg", "math", "foreignobject", "portal",
    }
)  # fmt: skip
_HARMLESS: Final = ("data:image/png", "data:image/jpeg", "data:image/gif", "data:image/webp")
_NOT_FETCHED: Final = ("mailto:", "tel:", "sms:", "urn:", "geo:")
_LONG_PIECE_CHARS = 24
_MANY_ESCAPES = 4


def address_start(word: str) -> int | None:
    """Where in a word an address with a scheme, or one of `//host`, begins."""
    found = _ADDRESS.search(word)
    return found.start() if found else None


def is_allowed(address: str, hosts: Iterable[str]) -> bool:
    """Whether an address is on one of these hosts, or on a host under one of them."""
    try:
        parts = urlsplit(address if not address.startswith("//") else f"https:{address}")
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.username is not None or "\\" in address:
        return False
    del port  # only read to see that it is a number
    return any(host == wanted or host.endswith(f".{wanted}") for wanted in hosts)


def fetches(address: str) -> bool:
    """Whether a picture with this address makes the reader's program ask another host."""
    low = address.lower()
    return not low.startswith((*_HARMLESS, *_NOT_FETCHED))


def carries_data(address: str) -> bool:
    """Whether a link holds something long that is no name: a drawn piece, or escaped text."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return True
    tail = f"{parts.path}?{parts.query}#{parts.fragment}"
    if tail.count("%") + parts.query.count("+") >= _MANY_ESCAPES:
        return True
    pieces = re.split(r"[/?&=#.;:]", f"{parts.netloc}/{unquote(tail)}")
    return any(len(piece) >= _LONG_PIECE_CHARS and drawn_span(piece) for piece in pieces)


def script_start(word: str, *, as_target: bool) -> int | None:
    """Where an address begins that runs instead of pointing somewhere.

    :param as_target: the word is the target of a link, so the scheme alone is enough.
    """
    found = _SCRIPT.search(word)
    if found is None and as_target:
        found = re.match(r"(?i)(?:javascript|vbscript|livescript):", word)
    return found.start() if found else None


def is_handler(word: str) -> bool:
    """Whether a word inside a tag is the name of an event handler."""
    return _HANDLER.match(word) is not None


def tag_name(word: str) -> str | None:
    """The name of the tag that a word right after `<` opens or closes."""
    found = _TAG.match(word)
    return found.group(1).lower() if found else None


def is_active(tag: str) -> bool:
    """Whether a tag runs code, embeds pages, or sends forms."""
    return tag in _ACTIVE_TAGS
