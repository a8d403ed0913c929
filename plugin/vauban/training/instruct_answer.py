"""The trained stand-in target that ships, and how it answers without a server."""

from __future__ import annotations

import threading
from pathlib import Path

from vauban.training.instruct import load_target
from vauban.training.instruct_evaluate import answered

SHIPPED_TARGET = Path(__file__).parents[1] / "data" / "target"


class Answerer:
    """A trained target in this process, on the CPU. One prompt at a time; any thread may ask."""

    def __init__(self, directory: Path) -> None:
        self._model, self._tokenizer = load_target(directory)
        self._lock = threading.Lock()

    def __call__(self, prompt: str, max_tokens: int) -> str:
        """The greedy answer to a rendered prompt, which must leave room for it."""
        with self._lock:
            (answer,) = answered(self._model, self._tokenizer, [prompt], "cpu", max_tokens)
        return answer
