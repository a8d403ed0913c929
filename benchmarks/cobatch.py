"""Does the encoder see many requests at once when many clients call?

A real guarded vLLM, closed-loop clients at 1, 8 and 32. From the server's own audit log, one line
per decision with its encoder batch and times:

- mean batch: requests / encoder passes (a pass over B requests shows up B times as batch = B, so
  passes = sum of 1/batch);
- screening time per request: encode_ms / batch, the request's share of its pass.

python -m benchmarks.cobatch [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import MAX_TOKENS, PROMPT_WORDS, closed_loop
from benchmarks.results import Measure, Result, percentile
from benchmarks.servers import Server, guarded_vllm
from rich.console import Console

CLIENTS = (1, 8, 32)
BATCH_TARGET = 8.0
SPEEDUP_TARGET = 4.0
WORDS = {"700 characters": PROMPT_WORDS, "100 characters": 14}
"""Prompts of one full-size window, and short ones: on a CPU, one window of the first kind keeps
a core busy by itself, so only the second kind can gain from being encoded together."""
POLICY: dict[str, Any] = {"injection": {"block_at": 1.0}}


@dataclass(frozen=True)
class Batching:
    """What the audit log says of one run."""

    mean_batch: float
    screening_ms: float
    queue_ms: float
    hold_ms: float
    front_ms: float


def batching(decisions: list[dict[str, Any]]) -> Batching:
    """:param decisions: audit events of requests that the encoder has read."""
    passes = sum(1 / d["batch"] for d in decisions)
    return Batching(
        mean_batch=len(decisions) / passes,
        screening_ms=statistics.fmean(d["encode_ms"] / d["batch"] for d in decisions),
        queue_ms=percentile([d["queue_ms"] for d in decisions], 0.5),
        hold_ms=percentile([d["hold_ms"] for d in decisions], 0.5),
        front_ms=percentile([d["front_ms"] for d in decisions], 0.5),
    )


def policy_arguments(policy: dict[str, Any]) -> list[str]:
    return [
        text
        for section, fields in policy.items()
        for name, value in fields.items()
        for text in (f"--additional-config.vauban.{section}.{name}", str(value))
    ]


class Audit:
    """The server's audit log, read from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def new_decisions(self) -> list[dict[str, Any]]:
        with self.path.open(encoding="utf-8") as lines:
            lines.seek(self._at)
            text = lines.read()
            self._at = lines.tell()
        events = [json.loads(line) for line in text.splitlines()]
        return [event for event in events if event["event"] == "decision" and event["batch"]]


def run(server: Server, audit: Audit, *, repeats: int, per_client: int) -> Iterator[Measure]:
    for label, words in WORDS.items():
        closed_loop(server.url, max(CLIENTS), 2 * max(CLIENTS), words)
        audit.new_decisions()
        found: dict[int, list[Batching]] = {clients: [] for clients in CLIENTS}
        for _ in range(repeats):
            for clients in CLIENTS:
                requests = max(24, per_client * clients)
                closed_loop(server.url, clients, requests, words)
                decisions = audit.new_decisions()
                assert len(decisions) == requests, (len(decisions), requests)
                found[clients].append(batching(decisions))
        yield from _measures(label, found)


def _measures(label: str, found: dict[int, list[Batching]]) -> Iterator[Measure]:
    alone, crowd = found[CLIENTS[0]], found[CLIENTS[-1]]
    for clients, runs in found.items():
        name = f"{clients} clients, {label}"
        yield Measure(
            f"mean encoder batch ({name})", "requests", tuple(r.mean_batch for r in runs),
            at_least=BATCH_TARGET if clients == CLIENTS[-1] else None, lower_is_better=False,
        )  # fmt: skip
        yield Measure(
            f"screening per request ({name})", "ms", tuple(r.screening_ms for r in runs),
            baseline=statistics.median(r.screening_ms for r in alone),
        )  # fmt: skip
        yield Measure(f"queue p50 ({name})", "ms", tuple(r.queue_ms for r in runs))
        yield Measure(f"held answer p50 ({name})", "ms", tuple(r.hold_ms for r in runs))
        yield Measure(f"front p50 ({name})", "ms", tuple(r.front_ms for r in runs))
    yield Measure(
        f"screening per request, 1 client / {CLIENTS[-1]} clients ({label})", "x",
        tuple(a.screening_ms / c.screening_ms for a, c in zip(alone, crowd, strict=True)),
        at_least=SPEEDUP_TARGET, lower_is_better=False,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(argv).quick
    repeats, per_client = (2, 3) if quick else (5, 6)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        audit = Audit(Path(scratch) / "audit.jsonl")
        policy = {**POLICY, "audit": {"log": str(audit.path)}}
        with guarded_vllm(Path(scratch), policy_arguments(policy)) as server:
            measures = list(run(server, audit, repeats=repeats, per_client=per_client))
    result = Result(
        "cobatch",
        {"clients": CLIENTS, "repeats": repeats, "requests_per_client": per_client,
         "words": WORDS, "max_tokens": MAX_TOKENS},
        POLICY, measures,
    )  # fmt: skip
    result.show(Console(width=130))
    result.write(suffix="-quick" if quick else "")
    return result


if __name__ == "__main__":
    main()
