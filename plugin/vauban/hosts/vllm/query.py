"""The query of one of the guard's own routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from vauban.errors import MalformedRequest

DEFAULT_LISTED: Final = 100
_MAX_VALUE_CHARS: Final = 200
_MAX_DIGITS: Final = 9


def read_query(query: bytes, *names: str) -> Mapping[str, str]:
    """What is asked for, by name; what is not is empty.

    :raises MalformedRequest: another name, one twice, or a value too long.
    """
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=len(names))
    except ValueError:
        raise MalformedRequest(f"only {', '.join(names)} are taken, once each") from None
    if wrong := set(given) - set(names):
        raise MalformedRequest(f"only {', '.join(names)} are taken", param=min(wrong)[:40])
    if any(len(found) > 1 for found in given.values()):
        raise MalformedRequest(f"only {', '.join(names)} are taken, once each")
    values = {name: given.get(name, [""])[0] for name in names}
    if any(len(value) > _MAX_VALUE_CHARS for value in values.values()):
        raise MalformedRequest(f"at most {_MAX_VALUE_CHARS} characters")
    return values


def read_limit(text: str, most: int) -> int:
    """How many are asked for; empty: `DEFAULT_LISTED`.

    :raises MalformedRequest: not a number from 1 to `most`.
    """
    if not text:
        return DEFAULT_LISTED
    if not (text.isdecimal() and len(text) <= _MAX_DIGITS and 1 <= int(text) <= most):
        raise MalformedRequest(f"1 to {most}", param="limit")
    return int(text)
