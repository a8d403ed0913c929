"""Pools of examples in order, drawn by this process or ahead of it by others."""

from __future__ import annotations

import gc
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from vauban.training.mixture import Example, Mixture

_AHEAD = 3  # pools per worker that wait to be trained on


def pools(
    mixture: Mixture, seed: int, first: int, end: int, workers: int
) -> Iterator[list[Example]]:
    """Pools `first` to `end` - 1. They are the same for any number of workers.

    :param workers: processes that draw; 0: this one does. They are forked, so that each has the
        data without a copy.
    """
    if not workers:
        for number in range(first, end):
            yield mixture.pool(seed, number)
        return
    gc.freeze()  # children share these pages until a collection touches them
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _inherit, (mixture,)) as executor:
        waiting: deque[Future[list[Example]]] = deque()
        try:
            for number in range(first, end):
                waiting.append(executor.submit(_draw, seed, number))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_inherited: list[Mixture] = []


def _inherit(mixture: Mixture) -> None:
    _inherited[:] = [mixture]


def _draw(seed: int, number: int) -> list[Example]:
    return _inherited[0].pool(seed, number)
