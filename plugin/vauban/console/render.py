"""Pages from templates.

Whatever a template prints is escaped twice over: what is not printable ASCII becomes `\\uXXXX`, so
that nothing invisible, bidirectional or look-alike passes for what it is not, and then HTML.
Only what operators themselves wrote (`| words`) keeps its letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_BASIC: Final = 0xFFFF
_REPLACED: Final = "\N{REPLACEMENT CHARACTER}"


def plain(text: str) -> str:
    """Printable ASCII; line breaks stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" or c == "\n" else _escape(c) for c in text)


def _escape(char: str) -> str:
    return json.dumps(char)[1:-1] if ord(char) > _BASIC else f"\\u{ord(char):04x}"


def words(text: str) -> Markup:
    """Text in any language, as a person wrote it, on one line."""
    return escape("".join(c if c.isprintable() else _REPLACED for c in str(text)))


def _finalize(value: Any) -> Any:
    if value is None:
        return ""
    return value if hasattr(value, "__html__") else plain(str(value))


def _path(text: str) -> Markup:
    """One part of a path in a link."""
    return Markup(quote(str(text), safe=""))  # noqa: S704 - no character of HTML's is left


def when(moment: str | None) -> str:
    """A time of the server's, for people."""
    return (moment or "").replace("T", " ").replace("Z", " UTC")


def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("vauban.console"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"words": words, "path": _path, "when": when}
    return made


def render(made: Environment, template: str, values: Mapping[str, Any]) -> str:
    return made.get_template(template).render(values)
