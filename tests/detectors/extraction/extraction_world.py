"""A small world of embeddings: topics are directions, a text is near one of them."""

from __future__ import annotations

import numpy as np

from vauban.detectors.extraction.projection import Floats, unit

DIMENSIONS = 384


class World:
    """Texts about `topics` topics: [topics, texts, 384] unit vectors."""

    def __init__(self, topics: int = 60, texts: int = 40, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        centres = unit(self.rng.normal(size=(topics, DIMENSIONS)))
        noise = self.rng.normal(size=(topics, texts, DIMENSIONS)) / np.sqrt(DIMENSIONS)
        self.texts = unit((centres[:, None] + 0.9 * noise).reshape(-1, DIMENSIONS)).reshape(
            topics, texts, DIMENSIONS
        )

    def script(self, count: int) -> Floats:
        """Any text after any other."""
        flat = self.texts.reshape(-1, DIMENSIONS)
        return flat[self.rng.permutation(len(flat))[:count]]

    def person(self, count: int) -> Floats:
        """Sessions about one of a few topics."""
        topics = self.rng.permutation(len(self.texts))[:5]
        asked: list[Floats] = []
        while len(asked) < count:
            topic = self.texts[self.rng.choice(topics)]
            asked += [topic[self.rng.integers(len(topic))] for _ in range(self.rng.integers(3, 12))]
        return np.array(asked[:count])
