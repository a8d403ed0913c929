"""Labelled texts to train and evaluate on: JSON lines, plain or gzipped, read as a stream.

A row has at least `text` and `label` (1 = attack, 0 = benign); `kind`, `source`, `lang` and
`license` are optional strings. The evaluation checks a file to its end before anything is scored,
and never holds all its texts at once.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vauban.errors import ConfigError

MAX_LINE_CHARS = 16_000_000
MAX_NAME_CHARS = 100
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """`source` is cut before a colon: "owner/name:path" is the repository."""

    text: str
    label: int
    kind: str = UNKNOWN
    source: str = UNKNOWN
    lang: str = UNKNOWN
    license: str = UNKNOWN


def labelled_rows(path: Path, wanted: Callable[[int], bool] | None = None) -> Iterator[Row]:
    """The rows of a file in order; with `wanted`, only those whose number (from 0) it takes.

    :raises ConfigError: the file can't be read or a line is not a row; the message has the line's
        number, never its text.
    """
    number = 0
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: is no file")
        with _open(path) as lines:
            row = 0
            while line := lines.readline(MAX_LINE_CHARS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARS:
                    raise ConfigError(
                        f"{path}: line {number} is longer than {MAX_LINE_CHARS} characters"
                    )
                if not line.strip():
                    continue
                if wanted is None or wanted(row):
                    yield _parse(line, f"{path}: line {number}")
                row += 1
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: can't be read ({error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: line {number + 1} is not UTF-8") from error


def read_labels(path: Path) -> bytes:
    """The label of every row, one byte each, after a look at every line.

    :raises ConfigError: as `labelled_rows`; also for a file without rows.
    """
    labels = bytes(row.label for row in labelled_rows(path))
    if not labels:
        raise ConfigError(f"{path}: has no rows")
    return labels


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse(line: str, where: str) -> Row:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is not valid JSON") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} is not a JSON object")
    text, label = raw.get("text"), raw.get("label")
    if not isinstance(text, str):
        raise ConfigError(f'{where} has no "text" that is a string')
    if type(label) is not int or label not in (0, 1):
        raise ConfigError(f'{where} has no "label" that is 0 or 1')
    names = [raw.get(field) for field in ("kind", "source", "lang", "license")]
    kind, source, lang, license_ = (
        name[:MAX_NAME_CHARS] if name and isinstance(name, str) else UNKNOWN for name in names
    )
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return Row(text, label, kind, source.partition(":")[0], lang, license_)
