"""vLLM's own benchmark client, `vllm bench serve`, and what its report says.

It is called in this process: its flags, its load, its report. The command itself can't be used with
the CPU build, which registers no package named `vllm`, and importing it takes up to half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.load import Refused
from benchmarks.prompts import Prompt, write
from benchmarks.results import percentile
from benchmarks.servers import SERVED_NAME

BLOCKED = "Bad Request"
"""The reason phrase of HTTP 400, which a blocked request gets; the client keeps nothing else."""
OUTPUT_TOKENS = 16


@dataclass(frozen=True)
class Load:
    """Either closed loop (`clients` that wait for their answers) or open loop: requests arrive at
    `rate` per second as a Poisson process, whether or not earlier ones are answered."""

    clients: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if (self.clients is None) == (self.rate is None):
            raise ValueError("a load has either clients or a rate")

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.clients} client" + "s" * (self.clients != 1)

    def flags(self) -> list[str]:
        if self.clients is not None:
            return ["--max-concurrency", str(self.clients)]
        return ["--request-rate", f"{self.rate:g}", "--burstiness", "1"]


@dataclass(frozen=True)
class Sent:
    """What became of one load. Milliseconds, of the requests that were answered.

    `gap`: between tokens, without the one between the chunk that names the role and the first
    token. `attacks`, `harmless`: how many were sent, and how many of them blocked.
    """

    first_ms: tuple[float, ...]
    gap_ms: tuple[float, ...]
    whole_ms: tuple[float, ...]
    per_second: float
    attacks: tuple[int, int]
    harmless: tuple[int, int]

    def p(self, share: float, kind: str) -> float:
        values: tuple[float, ...] = getattr(self, f"{kind}_ms")
        return percentile(values, share)


def flags(url: str, model: Path, rows: Path, count: int, load: Load) -> list[str]:
    """The arguments of `vllm bench serve`."""
    return [
        "--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", url,
        "--model", str(model), "--served-model-name", SERVED_NAME, "--tokenizer", str(model),
        "--dataset-name", "custom", "--dataset-path", str(rows), "--disable-shuffle",
        "--skip-chat-template", "--custom-output-len", str(OUTPUT_TOKENS), "--ignore-eos",
        "--num-prompts", str(count), "--temperature", "0", "--ready-check-timeout-sec", "0",
        "--disable-tqdm", "--save-detailed", *load.flags(),
    ]  # fmt: skip


def send(url: str, model: Path, scratch: Path, rows: Sequence[Prompt], load: Load) -> Sent:
    """Send `rows` in this order.

    :raises Refused: an answer was neither a completion nor a block.
    """
    path = scratch / "prompts.jsonl"
    write(path, rows)
    arguments = _parser().parse_args(flags(url, model, path, len(rows), load))
    from vllm.benchmarks.serve import main_async

    with contextlib.redirect_stdout(io.StringIO()):
        report = asyncio.run(main_async(arguments))
    return read(report, [row.attack for row in rows])


def read(report: Mapping[str, Any], attacks: Sequence[bool]) -> Sent:
    """A detailed report. `attacks`: for each request, in order, whether it was one.

    :raises ValueError: the report is not detailed, or about another number of requests.
    :raises Refused: an answer was neither a completion nor a block.
    """
    try:
        columns = [report[name] for name in ("ttfts", "itls", "latencies", "errors")]
        seconds = float(report["duration"])
    except KeyError as missing:
        raise ValueError(f"the client's report has no {missing}") from None
    if {len(column) for column in columns} != {len(attacks)}:
        raise ValueError(f"the client's report is not about {len(attacks)} requests")
    strange = [error for error in columns[3] if error not in ("", BLOCKED)]
    if strange:
        raise Refused(f"{len(strange)} requests failed: {strange[0][-500:]}")
    answered = [row for row in zip(*columns, strict=True) if not row[3]]
    blocked = [bool(error) for error in columns[3]]
    return Sent(
        first_ms=tuple(1e3 * first for first, *_ in answered),
        gap_ms=tuple(1e3 * gap for _, gaps, *_ in answered for gap in gaps[1:]),
        whole_ms=tuple(1e3 * whole for _, _, whole, _ in answered),
        per_second=len(attacks) / seconds,
        attacks=_count(attacks, blocked, of=True),
        harmless=_count(attacks, blocked, of=False),
    )


def _count(attacks: Sequence[bool], blocked: Sequence[bool], *, of: bool) -> tuple[int, int]:
    chosen = [stop for attack, stop in zip(attacks, blocked, strict=True) if attack is of]
    return len(chosen), sum(chosen)


@cache
def _parser() -> argparse.ArgumentParser:
    from vllm.benchmarks.serve import add_cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = FlexibleArgumentParser()
    add_cli_args(parser)
    return parser
