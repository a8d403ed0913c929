"""Closed-loop clients: each sends its next request when the last one is answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from benchmarks.servers import SERVED_NAME

from vauban.standin import prose

MAX_TOKENS = 8
PROMPT_WORDS = 110
"""About 700 characters and 150 encoder tokens: one window."""

_seeds = itertools.count(1)


class Refused(Exception):
    """A server answered something else than 200; timings of that would mean nothing."""


@dataclass(frozen=True)
class Timing:
    """Seconds from sending the request to the first byte of the answer's body, and to its end."""

    first: float
    total: float


def bodies(words: int = PROMPT_WORDS) -> Iterator[dict[str, Any]]:
    """Chat requests that all differ, also from those of other calls: nothing is served from a
    prefix cache, and the encoder, which computes repeated text once, has to read each one."""
    for seed in _seeds:
        yield {
            "model": SERVED_NAME,
            "messages": [{"role": "user", "content": prose(words, seed)}],
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "temperature": 0,
        }


def closed_loop(url: str, clients: int, requests: int, words: int = PROMPT_WORDS) -> list[Timing]:
    """Send `requests` chat requests with `clients` at a time.

    :raises Refused: any answer but 200.
    """
    return asyncio.run(_closed_loop(url, clients, requests, words))


async def _closed_loop(url: str, clients: int, requests: int, words: int) -> list[Timing]:
    ready = [next(source) for source in [bodies(words)] for _ in range(requests)]
    waiting = iter(ready)
    timings: list[Timing] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            for body in waiting:
                timings.append(await _one(session, url, body))

        await asyncio.gather(*(client() for _ in range(clients)))
    return timings


async def _one(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Timing:
    started = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise Refused(f"{url}: HTTP {answer.status}")
        await answer.content.readany()
        first = time.perf_counter() - started
        await answer.read()
    return Timing(first, time.perf_counter() - started)
