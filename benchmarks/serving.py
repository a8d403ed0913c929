"""What the guard costs under load, by vLLM's own benchmark client, beside what stands in front.

Arms, each a real server, measured in turns so that drift hits all of them; the servers that are not
measured are stopped (SIGSTOP) meanwhile:

- off: vLLM in whose environment vauban is not installed;
- on, monitor: the same vLLM with the guard, everything on by default but the threshold;
- proxy: a forwarding proxy in front of `off` that asks a server with the same encoder first, which
  judges all that wait in one batch;
- llm-guard: the same proxy, asking llm-guard's PromptInjection scanner with the same encoder.

Loads: closed loop with more and more clients, longer and longer prompts, attacks among the prompts,
and open loop (Poisson arrivals).

python -m benchmarks.serving [--quick] [--repeats N] [--scale N] [--arms NAME ...]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.client import OUTPUT_TOKENS, Load, send
from benchmarks.load import closed_loop
from benchmarks.prompts import prompts
from benchmarks.provenance import load
from benchmarks.results import Result
from benchmarks.serving_arms import BLOCK_AT, GUARDED, NAMES, OFF, ON, POLICIES, arms
from benchmarks.serving_measures import TOKENS, Cell, Shot, Taken, false_alarms, fits, measures
from benchmarks.stages import between, scrape
from benchmarks.vs_proxy import Arm, alone
from rich.console import Console

from vauban.standin import load_tokenizer, make_standin

CLIENTS = 8
_COUNTS = {1: 4, 8: 16, 32: 32}
_LENGTHS = {64: 2, 512: 1, 2048: 1, 8192: 1}
GRID = (
    *(Cell(TOKENS, Load(clients=clients), count) for clients, count in _COUNTS.items()),
    *(Cell(tokens, Load(clients=1), count) for tokens, count in _LENGTHS.items()),
    *(Cell(TOKENS, Load(clients=CLIENTS), 10, attacks) for attacks in (0.1, 0.5)),
    Cell(TOKENS, Load(rate=8), 8),
)
QUICK_GRID = (
    Cell(TOKENS, Load(clients=1), 3),
    Cell(TOKENS, Load(clients=8), 16),
    Cell(TOKENS, Load(clients=32), 24),
    Cell(512, Load(clients=1), 1),
    Cell(2048, Load(clients=1), 1),
    Cell(TOKENS, Load(clients=8), 10, 0.5),
    Cell(TOKENS, Load(rate=8), 6),
)
NOBODY = Arm("", ())
SHOWN = (
    "first token p50", "first token added p50", "answered", "CPU time a request",
    "attacks blocked", "harmless blocked", "exponent",
)  # fmt: skip


@dataclass
class Turns:
    """The right to keep the machine busy, shared by a lock on a file.

    It is given up between two repeats when another one would take it beyond `LONGEST_S`.
    """

    LONGEST_S = 355.0

    path: Path | None
    _since: float = 0.0
    _repeat_s: float = 60.0

    def __post_init__(self) -> None:
        self._file = self.path.open("a") if self.path else None

    def take(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._since = time.monotonic()

    def next_repeat(self) -> None:
        if self._file and time.monotonic() - self._since + self._repeat_s > self.LONGEST_S:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            time.sleep(1)  # whoever waits comes first
            self.take()

    @contextlib.contextmanager
    def repeat(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._repeat_s = time.monotonic() - started


class Bench:
    def __init__(self, found: dict[str, Arm], model: Path, scratch: Path) -> None:
        self._arms, self._model, self._scratch = found, model, scratch
        self._tokenizer: Any = load_tokenizer(model)
        servers = {id(server): server for arm in found.values() for server in arm.servers}
        self.everything = list(servers.values())

    def one(self, name: str, cell: Cell) -> Shot:
        """One load on one arm, after a request that wakes its processes."""
        arm = self._arms[name]
        rows = prompts(self._tokenizer, cell.tokens, cell.count, cell.attacks)
        own_metrics = name in (OFF, *GUARDED)
        with alone(arm, self.everything):
            closed_loop(arm.url, 1, 1)
            before = scrape(arm.url) if own_metrics else {}
            spent = -sum(server.cpu_s() for server in arm.servers)
            sent = send(arm.url, self._model, self._scratch, rows, cell.load)
            spent += sum(server.cpu_s() for server in arm.servers)
            after = scrape(arm.url) if own_metrics else {}
        return Shot(sent, between(before, after), 1e3 * spent / cell.count)


def run(
    found: dict[str, Arm], grid: tuple[Cell, ...], repeats: int, directory: Path, turns: Turns
) -> Iterator[Taken]:
    """What has been taken after each repeat."""
    bench = Bench(found, directory / "model", directory)
    taken: Taken = {(name, cell): [] for cell in grid for name in found}
    names = list(found)
    for turn in range(repeats):
        with alone(NOBODY, bench.everything):
            turns.next_repeat()
        order = names[turn % len(names) :] + names[: turn % len(names)]
        with turns.repeat():
            for cell in grid:
                for name in order:
                    taken[name, cell].append(bench.one(name, cell))
        yield taken


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, help="default: 2 with --quick, else 5")
    parser.add_argument("--scale", type=int, default=1, help="times as many requests")
    parser.add_argument("--lock", type=Path, help="take turns with others who lock this file")
    parser.add_argument("--arms", nargs="+", choices=NAMES, default=NAMES, help="besides `off`")
    given = parser.parse_args(argv)
    repeats = given.repeats or (2 if given.quick else 5)
    grid = tuple(
        replace(cell, count=cell.count * given.scale)
        for cell in (QUICK_GRID if given.quick else GRID)
    )
    console = Console(width=130)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no stopped server is left behind
    turns = Turns(given.lock)
    turns.take()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        directory = Path(scratch)
        make_standin(directory / "model")
        with arms(directory, given.arms, console) as found:
            console.print(f"{', '.join(found)} are up, load {load()}", highlight=False)
            for taken in run(found, grid, repeats, directory, turns):
                result = _result(taken)
                path = result.write(suffix="-quick" if given.quick else "")
                console.print(f"{result.settings['repeats']} repeats taken, load {load()}")
    result.show(console, SHOWN)
    from benchmarks.plots import draw_all

    draw_all(path)
    return result


def _result(taken: Taken) -> Result:
    cells = {str(cell): cell.count for _, cell in taken}
    settings = {
        "arms": list(dict.fromkeys(arm for arm, _ in taken)), "cells": cells,
        "repeats": min(map(len, taken.values())), "output_tokens": OUTPUT_TOKENS,
        "block_at": BLOCK_AT, "policies": POLICIES,
    }  # fmt: skip
    found = measures(taken)
    notes = [*fits(found), false_alarms(taken)]
    return Result("serving", settings, POLICIES[ON], found, notes)


if __name__ == "__main__":
    main()
