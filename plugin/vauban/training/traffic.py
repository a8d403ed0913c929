"""Simulated callers, made of real texts' embeddings: people, services and thieves.

People ask in sessions about few or many topics, repeat themselves, now and then ask something by
the way; how long, how tight and how often differs from one to the next, and is drawn wide on
purpose: the detector's false alarms are set on them. Thieves only serve to measure it. Nothing
here is a model of one known data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.projection import Floats, unit

Generator = np.random.Generator
_NEIGHBOURS: Final = 24
_MIN_TOPIC: Final = 8
_TWO_AT_A_TIME: Final = 0.1

PEOPLE: Final[Mapping[str, float]] = {
    "focused": 0.45, "generalist": 0.25, "worker": 0.20, "talkative": 0.10,
}  # fmt: skip
"""Kinds of people and their shares."""
SERVICES: Final = ("aggregator", "summariser", "template", "classifier")


@dataclass(frozen=True)
class Pool:
    """Texts to ask about, as unit embeddings [n, d], in topics found by k-means."""

    embeddings: Floats
    topic_of: NDArray[np.intp]
    members: Sequence[NDArray[np.intp]]
    topics: NDArray[np.intp]
    neighbours: NDArray[np.intp]

    @classmethod
    def of(cls, embeddings: Floats, topics: int, rng: Generator) -> Pool:
        _, topic_of = clusters(embeddings, topics, rng)
        members = [np.flatnonzero(topic_of == topic) for topic in range(topics)]
        large = [t for t in range(topics) if len(members[t]) >= _MIN_TOPIC]
        similar = embeddings @ embeddings.T
        np.fill_diagonal(similar, -1.0)
        return cls(embeddings, topic_of, members, np.array(large), _most_similar(similar))


def _most_similar(similar: Floats) -> NDArray[np.intp]:
    """Columns of the largest of each row [n, `_NEIGHBOURS`], the largest first."""
    columns = np.argpartition(-similar, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    values = np.take_along_axis(similar, columns, axis=1)
    found: NDArray[np.intp] = np.take_along_axis(columns, np.argsort(-values, axis=1), axis=1)
    return found


def clusters(
    rows: Floats, count: int, rng: Generator, rounds: int = 12
) -> tuple[Floats, NDArray[np.intp]]:
    """Spherical k-means: unit centres [count, d] and the centre of each row."""
    centres = rows[rng.choice(len(rows), count, replace=len(rows) < count)].copy()
    for _ in range(rounds):
        nearest = (rows @ centres.T).argmax(axis=1)
        for index in range(count):
            found = rows[nearest == index]
            if len(found):
                centres[index] = found.mean(axis=0)
        centres = unit(centres)
    return centres, (rows @ centres.T).argmax(axis=1)


def blurred(rows: Floats, amount: float, rng: Generator) -> Floats:
    """Rows moved by about `amount`, as a rephrasing moves them."""
    noise = rng.normal(0.0, amount / np.sqrt(rows.shape[1]), rows.shape)
    return unit(rows + noise.astype(np.float32))


@dataclass(frozen=True)
class _Habits:
    """How one person asks. Shares in [0, 1]: `by_the_way` of the queries, `interrupts` of those in
    the middle of a session. `session` gives the length of the next one."""

    topics: NDArray[np.intp]
    weights: NDArray[np.float64] | None
    by_the_way: float
    interrupts: float
    tight: float
    repeat: float
    return_to: float
    session: Callable[[], int]


def _session_lengths(rng: Generator, long: bool) -> Callable[[], int]:
    mean = rng.uniform(6, 20) if long else rng.uniform(3, 14)
    kind = rng.choice(["geometric", "uniform", "poisson", "lognormal", "alike"],
                      p=[0.4, 0.2, 0.15, 0.15, 0.1])  # fmt: skip
    if kind == "geometric":
        return lambda: 1 + int(rng.geometric(1 / mean))
    if kind == "uniform":
        low, high = max(1, int(mean / 2.5)), int(mean * 1.6) + 1
        return lambda: int(rng.integers(low, high + 1))
    if kind == "poisson":
        return lambda: 1 + int(rng.poisson(mean - 1))
    if kind == "lognormal":
        return lambda: max(1, int(rng.lognormal(np.log(mean) - 0.32, 0.8)))
    length = int(mean)
    return lambda: max(1, length + int(rng.integers(-1, 2)))


def _habits(pool: Pool, kind: str, rng: Generator) -> _Habits:
    some = {"focused": (1, 6), "worker": (2, 9), "talkative": (1, 4)}
    topics, weights = pool.topics, None
    if kind in some:
        count = min(int(rng.integers(*some[kind])), len(topics))
        topics = rng.choice(topics, count, replace=False)
        weights = rng.dirichlet(np.full(count, 0.8))
    by_the_way = rng.beta(1.5, 10.0) if kind == "worker" else rng.beta(1.1, 12.0)
    return _Habits(
        topics,
        weights,
        by_the_way=0.0 if rng.random() < 0.15 else by_the_way,
        interrupts=0.0 if rng.random() < 0.4 else rng.uniform(0.0, 1.0),
        tight=rng.uniform(0.5, 1.0),
        repeat=rng.beta(1, 14),
        return_to=rng.uniform(0.0, 0.4),
        session=_session_lengths(rng, long=kind == "talkative"),
    )


def person(pool: Pool, count: int, rng: Generator, kind: str | None = None) -> Floats:
    """The embeddings of one person's queries [count, d], in order."""
    kind = kind or str(rng.choice(list(PEOPLE), p=list(PEOPLE.values())))
    if rng.random() < _TWO_AT_A_TIME:  # two conversations side by side
        return _interleaved(
            person_once(pool, count, rng, kind), person_once(pool, count, rng, kind), rng
        )
    return person_once(pool, count, rng, kind)


def person_once(pool: Pool, count: int, rng: Generator, kind: str) -> Floats:
    """A person who finishes one conversation before the next."""
    habits = _habits(pool, kind, rng)
    asked: list[int] = []
    starts: list[int] = []
    while len(asked) < count:
        length = habits.session()
        # A share of queries, not of sessions.
        odd = habits.by_the_way * (1 - habits.interrupts) * length
        if rng.random() < odd / (1 - habits.by_the_way + odd):
            asked.append(int(rng.integers(len(pool.embeddings))))
            continue
        if starts and rng.random() < habits.return_to:
            current = starts[int(rng.integers(len(starts)))]
        else:
            current = int(rng.choice(pool.members[rng.choice(habits.topics, p=habits.weights)]))
        starts.append(current)
        asked += _session(pool, current, length, habits, rng)
    return blurred(pool.embeddings[asked[:count]], 0.12, rng)


def _interleaved(one: Floats, two: Floats, rng: Generator) -> Floats:
    second = rng.random(len(one)) < 0.5
    mixed = one.copy()
    mixed[second], mixed[~second] = two[: second.sum()], one[: (~second).sum()]
    return mixed


def _session(pool: Pool, start: int, length: int, habits: _Habits, rng: Generator) -> list[int]:
    said, current = [start], start
    aside = habits.by_the_way * habits.interrupts
    while len(said) < length:
        if rng.random() < aside:
            said.append(int(rng.integers(len(pool.embeddings))))
            continue
        if rng.random() >= habits.repeat:
            if rng.random() < habits.tight:
                near = pool.neighbours[current if rng.random() < 0.7 else start]
                current = int(near[rng.integers(len(near))])
            else:
                current = int(rng.choice(pool.members[pool.topic_of[start]]))
        said.append(current)
    return said


def sampled(rows: Floats, count: int, rng: Generator) -> Floats:
    """Whoever draws from a list at random; a list that is too short is rephrased."""
    if len(rows) >= count:
        return rows[rng.choice(len(rows), count, replace=False)]
    return blurred(rows[rng.integers(len(rows), size=count)], 0.25, rng)


def knockoff(pool: Pool, count: int, rng: Generator) -> Floats:
    """Every topic equally often (Orekondy et al. 2019, without the reward)."""
    topics = rng.choice(pool.topics, size=count)
    return blurred(pool.embeddings[[int(rng.choice(pool.members[t])) for t in topics]], 0.15, rng)


def k_centre(rows: Floats, count: int, rng: Generator) -> Floats:
    """Always the text furthest from all before (Pal et al. 2020)."""
    rows = rows[rng.permutation(len(rows))[: max(600, count)]]
    chosen = [0]
    nearest = rows @ rows[0]
    for _ in range(min(count, len(rows)) - 1):
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
    return rows[chosen]


def chained(pool: Pool, count: int, rng: Generator) -> Floats:
    """Every seed is followed up a few times."""
    usual = int(rng.integers(2, 6))
    asked: list[int] = []
    while len(asked) < count:
        current = int(rng.integers(len(pool.embeddings)))
        asked.append(current)
        for _ in range(usual if rng.random() < 0.5 else int(rng.integers(1, 6))):
            current = int(rng.choice(pool.neighbours[current]))
            asked.append(current)
    return blurred(pool.embeddings[asked[:count]], 0.1, rng)


def in_order(rows: Floats) -> Floats:
    """The same queries sorted so that neighbours resemble each other, to imitate sessions."""
    left = list(range(1, len(rows)))
    order = [0]
    while left:
        order.append(left.pop(int((rows[left] @ rows[order[-1]]).argmax())))
    return rows[order]


def in_pieces(rows: Floats, rng: Generator) -> Floats:
    """Sorted queries cut into pieces as long as people's sessions, in any order: the best imitation
    of sessions that asks nothing twice."""
    session = _session_lengths(rng, long=False)
    cuts = np.cumsum([session() for _ in range(len(rows))])
    pieces = np.split(np.arange(len(rows)), cuts[cuts < len(rows)])
    order = np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])
    return np.asarray(rows[order])


def small_pool(rows: Floats, count: int, rng: Generator) -> Floats:
    """A few dozen texts, asked again and again in any order."""
    pool = rows[rng.choice(len(rows), int(rng.integers(24, 97)), replace=False)]
    return blurred(pool[rng.integers(len(pool), size=count)], 0.12, rng)


def diluted(honest: Floats, theft: Floats, share: float, rng: Generator) -> Floats:
    """A thief's queries spread over those of a person, who has as many in all."""
    mixed = honest.copy()
    taken = rng.random(len(mixed)) < share
    mixed[taken] = theft[: taken.sum()]
    return mixed


def service(pool: Pool, documents: Floats, count: int, rng: Generator, kind: str) -> Floats:
    """The embeddings of one service's queries: a program that asks for many people."""
    if kind == "aggregator":
        people = [person(pool, count // 5, rng) for _ in range(int(rng.integers(10, 40)))]
        position = [0] * len(people)
        rows: list[Floats] = []
        while len(rows) < count:
            who = int(rng.integers(len(people)))
            rows.append(people[who][position[who] % len(people[who])])
            position[who] += 1
        return np.array(rows)
    if kind == "summariser":
        return blurred(documents[rng.integers(len(documents), size=count)], 0.15, rng)
    if kind == "template":
        frame = pool.embeddings[rng.integers(len(pool.embeddings))]
        rows_ = pool.embeddings[rng.integers(len(pool.embeddings), size=count)]
        return unit(rows_ + np.float32(rng.uniform(0.6, 1.5)) * frame)
    topics = rng.choice(pool.topics, int(rng.integers(2, 12)))
    picked = [int(rng.choice(pool.members[t])) for t in rng.choice(topics, count)]
    frame = pool.embeddings[rng.integers(len(pool.embeddings))]
    return unit(pool.embeddings[picked] + np.float32(rng.uniform(0.5, 1.2)) * frame)
