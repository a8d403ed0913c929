"""Characters that steer a terminal, turn the direction of text, or are not seen."""

from __future__ import annotations

import re
from typing import Final

CONTROL: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e0fff]"
)
JSON_CONTROL: Final = re.compile(
    r"(?i)\\u(?:00(?:0[0-8bcef]|1[0-9a-f]|7f|[89][0-9a-f])|202[a-e]|206[6-9])"
)
"""The same as escapes of JSON."""
_PLAIN = bytes(n for n in range(128) if not CONTROL.match(chr(n)))


def are_in(text: str) -> bool:
    """Whether any is in a text. Quick where nearly all of it is ASCII."""
    rest = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN)
    return bool(rest) and CONTROL.search(rest.decode("utf-8", "surrogatepass")) is not None
