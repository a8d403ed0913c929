"""Arguments of a tool call: one text for one meaning, and whether they keep an operator's rules.

Whatever judges, shows, stores or releases a call works on the canonical text: two readers of the
text that a model wrote (one takes the first of two equal names, another the last) could see
different calls.

A rule is kept only by a value that is surely inside of it. What can be read in more than one way
(a mail address in quotes, a path with `..`) breaks it.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from vauban.errors import VaubanError

# Without % and !: by them a mail may be routed on to another host.
_ADDRESS: Final = re.compile(r"(?:[\w .'()+-]*<)?([\w.#$&'*+/=?^`{|}~-]+)@([\w.-]+)(>?)", re.ASCII)
_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_ODD_IN_PATH: Final = re.compile(r"[\\%~$*?\x00-\x1f]")


class NotArguments(VaubanError):
    """Not one JSON object that every reader reads alike."""


def parse(text: str) -> dict[str, Any]:
    """
    :raises NotArguments: not a JSON object; two names that are equal but for case or form, NaN,
        infinity, or nested too deeply.
    """
    try:
        value = json.loads(
            text or "{}", object_pairs_hook=_distinct, parse_constant=_refuse, parse_float=_finite
        )
    except (ValueError, RecursionError):
        raise NotArguments("the arguments are not one plain JSON object") from None
    if not isinstance(value, dict):
        raise NotArguments("the arguments are not a JSON object")
    return value


def canonical(value: Any) -> str:
    """JSON in ASCII, names in order, no blanks: bidirectional and invisible characters show."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def at(arguments: Mapping[str, Any], path: str) -> list[Any]:
    """The values at a dotted path; each entry of the lists on the way and at its end.

    Names are found in any case, as some readers of JSON find them.
    """
    found: list[Any] = [arguments]
    for name in map(_same, path.split(".")):
        found = [
            value
            for item in _flat(found)
            if isinstance(item, dict)
            for key, value in item.items()
            if _same(key) == name
        ]
    return [item for item in _flat(found) if item is not None]


class _Number(str):
    """As it is written."""


def texts_in(text: str) -> tuple[list[str], list[str], list[str]]:
    """All names in JSON, all values that are texts, and these with the numbers between them as they
    are written, in the order in which they stand; also those that a reader drops because their name
    comes twice. What is no JSON is one text."""
    names: list[str] = []
    texts: list[str] = []
    values: list[str] = []
    try:
        read = json.loads(
            text or "{}", object_pairs_hook=tuple, parse_int=_Number, parse_float=_Number
        )
    except (ValueError, RecursionError):
        return [], [text], [text]
    waiting: list[tuple[tuple[list[str], ...], Any]] = [((texts, values), read)]
    while waiting:
        places, item = waiting.pop()
        if isinstance(item, _Number):
            values.append(item)
        elif isinstance(item, str):
            for place in places:
                place.append(item)
        elif isinstance(item, tuple):  # an object
            for name, value in reversed(item):
                waiting += (((texts, values), value), ((names,), name))
        elif isinstance(item, list):
            waiting.extend(((texts, values), value) for value in reversed(item))
    return names, texts, values


def is_within_hosts(value: Any, hosts: Iterable[str]) -> bool:
    """Whether each address of a text (mail or http, separated by commas or semicolons) lies in
    one of the hosts or under it."""
    if not isinstance(value, str) or not value.strip():
        return False
    known = [host.casefold().strip(".") for host in hosts]
    for part in re.split(r"[,;]", value):
        host = _host_of(part.strip())
        if host is None or not any(host == k or host.endswith(f".{k}") for k in known):
            return False
    return True


def is_at_most(value: Any, limit: float) -> bool:
    """Whether a value is a number from 0 to the limit; a text with a number in it is none."""
    return type(value) in (int, float) and 0 <= value <= limit


def is_below(value: Any, directories: Iterable[str]) -> bool:
    """Whether a value is an absolute path inside one of the directories, by its text alone."""
    if not isinstance(value, str) or _ODD_IN_PATH.search(value):
        return False
    parts = value.split("/")
    if parts[0] or ".." in parts:
        return False
    inside = [part for part in parts if part not in ("", ".")]
    for directory in directories:
        root = [part for part in directory.split("/") if part not in ("", ".")]
        if inside[: len(root)] == root:
            return True
    return False


def _host_of(address: str) -> str | None:
    if match := _ADDRESS.fullmatch(address):
        if ("<" in address) != bool(match[3]):
            return None
        host = match[2]
    else:
        try:
            parts = urlsplit(address)
            host = parts.hostname or ""
        except ValueError:
            return None
        plain = address.isascii() and address.isprintable() and not re.search(r"[\s\\@]", address)
        if parts.scheme not in ("http", "https") or not plain:
            return None
    host = host.lower().rstrip(".")
    return host if _HOST.fullmatch(host) else None


def _flat(values: list[Any]) -> list[Any]:
    """Lists, and lists in lists, as their entries."""
    flat: list[Any] = []
    waiting = [*reversed(values)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
        else:
            flat.append(item)
    return flat


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({_same(name) for name, _ in pairs}) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _same(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
