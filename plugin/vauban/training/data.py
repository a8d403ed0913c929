"""Rows of the training files, and the encoder's view of a text.

Files are JSON lines, gzipped or not, with at least `text`, `label` (1 = attack) and `kind`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vauban.detectors.windows import Ids, WindowTokenizer
from vauban.errors import ConfigError
from vauban.policy import NormalizePolicy
from vauban.text.normalize import Normalizer


@dataclass(frozen=True, slots=True)
class Row:
    """`source` is "owner/name" of the repository a text came from, as far as the file says."""

    text: str
    label: int
    kind: str
    source: str = "unknown"
    license: str = "unknown"


class Reader:
    """What the encoder reads of a text: the guard's views of it, as token ids.

    The same normaliser and tokenizer as in the server, so that the head learns on folded text and
    on decoded messages, never on what it will not be shown.
    """

    def __init__(self, tokenizer: WindowTokenizer) -> None:
        self._normalize = Normalizer(NormalizePolicy())
        self._to_ids = tokenizer.to_ids
        framed = tokenizer(["a"]).per_model[0][0]
        self.frame = (int(framed[0]), int(framed[-1]))

    def __call__(self, text: str) -> list[Ids]:
        """Ids per view, special tokens left out; empty for a text without a token."""
        views = (np.array(self._to_ids(view), np.int32) for view in self._normalize(text).guard)
        return [ids for ids in views if len(ids)]

    def labelled(self, text: str, label: int) -> list[Ids]:
        """The views that `label` may be learned from.

        Of an encoded attack only what was decoded: its letters as they stand are those of any
        encoded text, and to learn that they are an attack is to block everything encoded.
        """
        views = self(text)
        decoded = sum(map(len, views[1:]))
        if label and 4 * decoded >= len(views[0] if views else ()) > 0:
            return views[1:]
        return views


def read_rows(path: Path) -> list[Row]:
    """:raises ConfigError: a line is not a row; the message has its number, never its text."""
    rows = []
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as lines:
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
