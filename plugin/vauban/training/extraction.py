"""Fits the reference of the extraction detector: what honest people look like.

No attack is used: the arms and their weights are fixed (`detectors/extraction/reference.py`),
and the fit only measures how far honest people go in them.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from vauban.detectors.encoder import Encoder
from vauban.detectors.extraction.accumulated import ARMS, NOTHING_YET, SEGMENT, Accumulated
from vauban.detectors.extraction.profile import Profile
from vauban.detectors.extraction.projection import (
    DIMENSIONS,
    SCALE,
    Floats,
    Projection,
    unit,
)
from vauban.detectors.extraction.reference import HORIZON, LEVELS, NONE, Reference
from vauban.policy import EncoderPolicy
from vauban.training.traffic import clusters
from vauban.training.traffic_world import World

COARSE_CELLS: Final = 512
LENGTHS: Final = (32, 64, 96, 128, 192, 256, 384, 512)
SEGMENTS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80)
"""Of one person, in `HORIZON` queries; in the tables, as what is forgotten leaves of them."""
_LEAST_SPREAD: Final = 0.005
_HIDDEN: Final = 384
_TEXTS_AT_ONCE: Final = 64

Embed = Callable[[Sequence[str]], Floats]
Track = Callable[[int, int], object]


def fit_projection(embeddings: Floats, rng: np.random.Generator) -> Projection:
    """:param embeddings: unit length [n, d], of all sorts of honest texts; n >= 512."""
    some = embeddings[rng.permutation(len(embeddings))[:8192]]
    _, _, axes = np.linalg.svd(some, full_matrices=False)
    matrix = np.ascontiguousarray(axes[:DIMENSIONS].T, dtype=np.float32)
    centres, _ = clusters(unit(embeddings @ matrix), COARSE_CELLS, rng)
    sides = np.linalg.qr(rng.normal(size=(DIMENSIONS, DIMENSIONS)))[0][:, :3]
    return Projection(
        matrix,
        np.clip(np.rint(centres * SCALE), -127, 127).astype(np.int8),
        sides.astype(np.float32),
    )


def embedder(policy: EncoderPolicy, track: Track) -> Embed:
    """Unit embeddings of texts, by the encoder that serves, each read in one window."""
    encoder = Encoder.load(policy, "cuda" if torch.cuda.is_available() else "cpu")

    def embed(texts: Sequence[str]) -> Floats:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows: Floats = np.zeros((len(texts), _HIDDEN), np.float32)
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            part = order[start : start + _TEXTS_AT_ONCE]
            for index, found in zip(
                part, encoder.encode([encoder.tokenizer([texts[i]]) for i in part]), strict=True
            ):
                if found.embedding is not None:
                    rows[index] = found.embedding
            track(min(start + _TEXTS_AT_ONCE, len(order)), len(order))
        return rows

    return embed


def fit_reference(
    world: World, people: int, seed: int, about: dict[str, Any], track: Track, workers: int = 1
) -> Reference:
    """Simulate honest people and fit the whole reference on them.

    :param workers: processes that simulate; the reference is the same for any number.
    """
    asked = [world.people[0].embeddings, world.documents, world.thefts["code"]]
    projection = fit_projection(np.concatenate(asked), np.random.default_rng(seed))
    _shared[:] = [(world, projection, seed)]
    gc.freeze()  # forked processes share these pages until a collection touches them
    watched = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for number, person in enumerate(pool.map(_person, range(people), chunksize=4), 1):
            watched.append(person)
            track(number, people)
    return fit_tables(projection, watched, about)


_shared: list[tuple[World, Projection, int]] = []


def _person(number: int) -> list[Judged]:
    world, projection, seed = _shared[0]
    rng = np.random.default_rng([seed, number])
    return watch(world.person(HORIZON, rng), projection)


@dataclass(frozen=True, slots=True)
class Judged:
    """One window at one moment: after `count` queries, the last `length`."""

    count: int
    length: int
    statistics: Floats


def watch(queries: Floats, projection: Projection) -> list[Judged]:
    """Every window that the detector judges along one caller's queries.

    :param queries: unit embeddings [n, d], in order.
    """
    small = projection(queries)
    fine = projection.fine_cells(small, projection.cells(small))
    profile = Profile()
    found = []
    for vector, cell in zip(small, fine, strict=True):
        if profile.add(vector, int(cell)):
            found += [
                Judged(profile.count, length, statistics)
                for length, statistics in profile.windows()
            ]
    return found


def fit_tables(
    projection: Projection, people: Sequence[Sequence[Judged]], about: dict[str, Any]
) -> Reference:
    """:param people: what `watch` saw of each honest person, over `HORIZON` queries."""
    samples = [_sample(people, length) for length in LENGTHS]
    centre = np.array([np.median(rows, axis=0) for rows in samples])
    up = np.array([np.quantile(rows, 0.9, axis=0) for rows in samples]) - centre
    down = centre - np.array([np.quantile(rows, 0.1, axis=0) for rows in samples])
    reference = Reference(
        projection=projection,
        lengths=np.array(LENGTHS, dtype=np.float32),
        centre=_float32(centre),
        up=_float32(np.maximum(up, _LEAST_SPREAD)),
        down=_float32(np.maximum(down, _LEAST_SPREAD)),
        arm_tails=np.zeros((len(LENGTHS), len(ARMS), len(LEVELS)), np.float32),
        segments=np.ones(len(SEGMENTS), np.float32),
        mean_tails=np.zeros((len(SEGMENTS), len(ARMS), len(LEVELS)), np.float32),
        ever=np.array(LEVELS, np.float32),
        about={**about, "people": len(people), "horizon_queries": HORIZON},
    )
    arm_tails = [
        np.quantile([reference.arm_values(row, length) for row in rows], LEVELS, axis=0).T
        for rows, length in zip(samples, LENGTHS, strict=True)
    ]
    gathered = [_gather(person, reference) for person in people]
    segments = [gathered[0][count - 1].segments for count in SEGMENTS]
    mean_tails = [
        np.quantile([person[count - 1].means for person in gathered], LEVELS, axis=0).T
        for count in SEGMENTS
    ]
    reference = replace(
        reference,
        arm_tails=_float32(np.array(arm_tails)),
        segments=_float32(segments),
        mean_tails=_float32(np.array(mean_tails)),
    )
    rarest = [
        _rarest(person, means, reference) for person, means in zip(people, gathered, strict=True)
    ]
    return replace(reference, ever=_float32(np.quantile(rarest, LEVELS)))


def _gather(person: Sequence[Judged], reference: Reference) -> list[Accumulated]:
    """What has accumulated after each segment of one person."""
    found, last = [], NOTHING_YET
    for judged in person:
        if judged.length == SEGMENT and judged.count % SEGMENT == 0:
            last = last.after(reference.arm_values(judged.statistics, SEGMENT))
            found.append(last)
    return found


def _rarest(person: Sequence[Judged], means: Sequence[Accumulated], reference: Reference) -> float:
    """The rarest tail that one person ever shows."""
    windows = (
        reference.suspect(reference.arm_values(j.statistics, j.length), j.length) for j in person
    )
    return max(*windows, *map(reference.suspect_all, means), NONE).tail


def _sample(people: Iterable[Sequence[Judged]], length: int) -> Floats:
    """Each person's statistics over the first `length` queries."""
    rows = [
        judged.statistics
        for person in people
        for judged in person
        if judged.count == judged.length == length
    ]
    return np.array(rows, dtype=np.float32)


def _float32(table: Any) -> Floats:
    return np.ascontiguousarray(table, dtype=np.float32)
