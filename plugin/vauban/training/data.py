"""Rows of the training files, tokenised once.

Files are gzipped JSON lines with at least `text`, `label` (1 = attack) and `kind`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vauban.detectors.windows import Ids, WindowTokenizer
from vauban.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Row:
    """`source` is "owner/name" of the repository a text came from, as far as the file says."""

    text: str
    label: int
    kind: str
    source: str
    license: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row as token ids, special tokens left out."""

    ids: Ids
    label: int
    kind: str


def read_rows(path: Path) -> list[Row]:
    """:raises ConfigError: a line is not a row; the message has its number, never its text."""
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                raw = json.loads(line)
                if raw["label"] not in (0, 1) or not isinstance(raw["text"], str):
                    raise ConfigError(f"{path}: line {number} has a bad label or text")
                rows.append(
                    Row(
                        raw["text"],
                        raw["label"],
                        str(raw["kind"]),
                        str(raw.get("source", "unknown")).partition(":")[0],
                        str(raw.get("license", "unknown")),
                    )
                )
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: can't be read ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: line {len(rows) + 1} is not a row") from error
    return rows


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenise(rows: Sequence[Row], tokenizer: WindowTokenizer) -> list[Tokens]:
    """Rows without a token (spaces only) are left out."""
    tokens = (
        Tokens(np.array(tokenizer.to_ids(row.text), np.int32), row.label, row.kind) for row in rows
    )
    return [row for row in tokens if len(row.ids)]
