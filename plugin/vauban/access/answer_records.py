"""An answer that is held, as records of a store: in parts, since a record has a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vauban.state.store import MAX_RECORD_BYTES, Change

MAX_PARTS: Final = 8
MAX_ANSWER_BYTES: Final = MAX_PARTS * MAX_RECORD_BYTES

Update = Callable[[str, Change], None]
"""See `state.store.Store.update`."""


def write_answer(update: Update, approval_id: str, answer: bytes) -> None:
    """:param answer: at most `MAX_ANSWER_BYTES`."""
    for number, start in enumerate(range(0, len(answer), MAX_RECORD_BYTES)):
        _put(update, _key(approval_id, number), answer[start : start + MAX_RECORD_BYTES])


def read_answer(update: Update, approval_id: str) -> bytes:
    """What is there of it. Whoever asks knows its hash."""
    parts = (read_record(update, _key(approval_id, number)) for number in range(MAX_PARTS))
    return b"".join(part or b"" for part in parts)


def drop_answer(update: Update, approval_id: str) -> None:
    for number in range(MAX_PARTS):
        _put(update, _key(approval_id, number), None)


def read_record(update: Update, key: str) -> bytes | None:
    found: bytes | None = None

    def change(old: bytes | None) -> bytes | None:
        nonlocal found
        found = old
        return old

    update(key, change)
    return found


def _put(update: Update, key: str, value: bytes | None) -> None:
    update(key, lambda _: value)


def _key(approval_id: str, number: int) -> str:
    return f"answer:{approval_id}:{number}"
