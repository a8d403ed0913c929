"""What a tool call would do, line by line, beside the last one of its kind that was let out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final

MAX_COMPARED_LINES: Final = 300
"""Lines that repeat cost their number cubed: 300 take half a second, 1,000 fifteen."""
_LET_OUT: Final = ("approved", "released")


@dataclass(frozen=True, slots=True)
class Line:
    """`mark`: `+` new, `-` was there the last time, or a blank: the same."""

    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """One call. `exact`: its arguments as they are stored and would be released. `against`: the
    approval it is compared with, or None. Nothing is left out of `lines`."""

    tool: str
    why: str
    exact: str
    lines: tuple[Line, ...]
    against: Mapping[str, Any] | None
    too_long_to_compare: bool = False


def changes(approval: Mapping[str, Any], earlier: Iterable[Mapping[str, Any]]) -> list[Change]:
    """
    :param approval: as the server tells it.
    :param earlier: other approvals, newest first.
    """
    let_out = [
        other
        for other in earlier
        if other["state"] in _LET_OUT
        and other["caller"] == approval["caller"]
        and other["id"] != approval["id"]
    ]
    return [_change(call, let_out) for call in approval["calls"]]


def _change(call: Mapping[str, Any], let_out: Sequence[Mapping[str, Any]]) -> Change:
    tool, exact = str(call["tool"]), str(call["arguments"])
    new = lines_of(exact)
    for other in let_out:
        for known in other["calls"]:
            if known["tool"] != call["tool"]:
                continue
            old = lines_of(str(known["arguments"]))
            if max(len(old), len(new)) > MAX_COMPARED_LINES:
                return Change(tool, call["why"], exact, _all_new(new), None, True)
            return Change(tool, call["why"], exact, tuple(_compared(old, new)), other)
    return Change(tool, call["why"], exact, _all_new(new), None)


def lines_of(arguments: str) -> list[str]:
    """Canonical JSON, one argument a line, ASCII; what is not JSON is shown as it is."""
    try:
        return json.dumps(json.loads(arguments), indent=2, ensure_ascii=True).splitlines()
    except (ValueError, RecursionError):
        return [arguments]


def _all_new(lines: Sequence[str]) -> tuple[Line, ...]:
    return tuple(Line("+", line) for line in lines)


def _compared(old: Sequence[str], new: Sequence[str]) -> Iterable[Line]:
    for what, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            yield from (Line(" ", line) for line in new[c:d])
            continue
        yield from (Line("-", line) for line in old[a:b])
        yield from (Line("+", line) for line in new[c:d])
