"""The encoder's view of a text, for training."""

from __future__ import annotations

import numpy as np

from vauban.detectors.windows import Ids, WindowTokenizer
from vauban.policy import NormalizePolicy
from vauban.text.normalize import Normalizer


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
