"""Pools of embeddings to simulate callers from, and every kind of caller by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vauban.detectors.extraction.projection import Floats, unit
from vauban.training import traffic
from vauban.training.traffic import Generator, Pool
from vauban.training.traffic_texts import WORLDS, Text

BROAD: Final = (
    "instructions", "evolved", "dictionary", "knockoff", "k_centre", "documents", "taxonomy",
    "perturbed_seeds", "random_tokens",
)  # fmt: skip
NARROW: Final = (
    "code", "tool_use", "chain_of_thought", "role_play", "instruction_wrapper", "expert_wrapper",
)  # fmt: skip
IN_SESSIONS: Final = ("chained", "sorted", "shuffled_sorted")
"""Thieves whose queries resemble those before, as people's do."""
MIXED_IN: Final = ("instructions", "evolved", "taxonomy", "code", "documents")
"""What a thief hides among honest queries."""
_TOPICS: Final[Mapping[str, tuple[int, int]]] = {"fit": (150, 60), "held_out": (100, 40)}
_MIN_POOL: Final = 60


@dataclass(frozen=True)
class World:
    """`people`: pools of different grain to ask from; thieves draw from other texts."""

    name: str
    people: tuple[Pool, ...]
    documents: Floats
    thefts: Mapping[str, Floats]
    seeds: Pool

    @classmethod
    def of(cls, name: str, texts: Sequence[Text], embeddings: Floats, seed: int) -> World:
        """:param embeddings: unit length [len(texts), d]."""
        rng = np.random.default_rng(seed)

        def pool(kind: str) -> list[int]:
            return [i for i, t in enumerate(texts) if t.world == name and t.kind == kind]

        honest, stolen = {}, {}
        for kind in ("query", "code", "role_play", "document"):
            order = rng.permutation(pool(kind))
            # Of a pool that is too small to share, both get all.
            shared = len(order) < _MIN_POOL
            honest[kind], stolen[kind] = (order, order) if shared else (order[::2], order[1::2])
        queries = honest["query"]
        asked = np.concatenate([
            queries, honest["code"][: len(queries) // 2],
            honest["role_play"][: len(queries) // 4], honest["document"][: len(queries) // 6],
        ])  # fmt: skip
        thefts = {kind: embeddings[pool(kind)] for kind in {*BROAD, *NARROW} if pool(kind)}
        thefts |= {
            "instructions": embeddings[stolen["query"]],
            "code": embeddings[stolen["code"]],
            "role_play": embeddings[stolen["role_play"]],
            "documents": embeddings[stolen["document"]],
        }
        tools = [i for i in stolen["query"] if texts[i].tools]
        if len(tools) >= _MIN_POOL:
            thefts["tool_use"] = embeddings[tools]
        return cls(
            name,
            tuple(Pool.of(embeddings[asked], topics, rng) for topics in _TOPICS[name]),
            embeddings[honest["document"]],
            thefts,
            Pool.of(thefts["instructions"], 80, rng),
        )

    def person(self, count: int, rng: Generator) -> Floats:
        """Queries of one honest person [count, d]."""
        return traffic.person(self.people[int(rng.integers(len(self.people)))], count, rng)

    def service(self, kind: str, count: int, rng: Generator) -> Floats:
        return traffic.service(self.people[0], self.documents, count, rng, kind)

    def kinds(self, names: Sequence[str]) -> list[str]:
        """Those of the names that this world has texts for."""
        return [name for name in names if name in self.thefts or name in _DRAWN]

    def theft(self, kind: str, count: int, rng: Generator) -> Floats:
        """Queries of one thief [count, d].

        :raises KeyError: this world has no texts for that kind.
        """
        if kind in _DRAWN:
            return _DRAWN[kind](self, count, rng)
        return traffic.sampled(self.thefts[kind], count, rng)

    def hidden(self, share: float, count: int, rng: Generator) -> Floats:
        """A thief among whose queries a share of 1 - `share` is an honest person's."""
        kind = str(rng.choice(self.kinds(MIXED_IN)))
        theft = self.theft(kind, count, rng)
        return traffic.diluted(self.person(count, rng), theft, share, rng)


_DRAWN: Final[Mapping[str, Callable[[World, int, Generator], Floats]]] = {
    "knockoff": lambda world, count, rng: traffic.knockoff(world.seeds, count, rng),
    "k_centre": lambda world, count, rng: traffic.k_centre(
        world.thefts["instructions"], count, rng
    ),
    "chained": lambda world, count, rng: traffic.chained(world.seeds, count, rng),
    "sorted": lambda world, count, rng: traffic.in_order(
        traffic.sampled(world.thefts["instructions"], count, rng)
    ),
    "shuffled_sorted": lambda world, count, rng: traffic.in_pieces(
        traffic.in_order(traffic.sampled(world.thefts["instructions"], count, rng)), rng
    ),
    "small_pool": lambda world, count, rng: traffic.small_pool(
        world.thefts["instructions"], count, rng
    ),
}


def worlds(
    texts: Sequence[Text],
    embed: Callable[[Sequence[str]], Floats],
    cache: Path | None = None,
    seed: int = 0,
) -> dict[str, World]:
    """Both worlds by name.

    :param embed: unit embeddings of texts [n, d].
    :param cache: `.npy` file that the embeddings are kept in; one of other texts is made anew.
    """
    embeddings: Floats | None = None
    if cache is not None and cache.exists():
        kept = np.load(cache)
        embeddings = unit(kept) if len(kept) == len(texts) else None
    if embeddings is None:
        embeddings = embed([text.text for text in texts])
        if cache is not None:
            np.save(cache, embeddings.astype(np.float16))
            embeddings = unit(np.load(cache))
    return {name: World.of(name, texts, embeddings, seed) for name in WORLDS}
