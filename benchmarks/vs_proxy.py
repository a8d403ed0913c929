"""What screening adds to the time to first token: inside the server, or in front of it.

Arms, all on this machine, each on its own server and measured in turns; the servers that are not
measured are stopped (SIGSTOP) meanwhile:

- off: vLLM in whose environment vauban is not installed;
- vauban: the same vLLM with both halves of the guard, everything on by default;
- proxy: a forwarding proxy in front of `off`, which asks a classifier server with the same
  encoder first; that judges one request at a time, on the cores that vLLM's worker leaves free;
- proxy, all cores: the same on every core, as torch has it unless told otherwise;
- proxy, batched: the classifier server judges all that wait in one batch;
- proxy, batched, parallel: the proxy also forwards at once and only holds the answer.

python -m benchmarks.vs_proxy [--quick] [--repeats N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cobatch import CLIENTS, POLICY, policy_arguments
from benchmarks.load import MAX_TOKENS, PROMPT_WORDS, Timing, closed_loop
from benchmarks.results import Measure, Result, percentile
from benchmarks.servers import Server, guarded_vllm, plain_vllm, uvicorn_app
from rich.console import Console

OFF, VAUBAN = "off", "vauban"
_FREE_CORES = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1))}
PROXIES: Mapping[str, Mapping[str, str]] = {
    "proxy": _FREE_CORES,
    "proxy, all cores": {},
    "proxy, batched": {**_FREE_CORES, "PEER_BATCHED": "1"},
    "proxy, batched, parallel": {**_FREE_CORES, "PEER_BATCHED": "1", "PEER_PARALLEL": "1"},
}


@dataclass(frozen=True)
class Arm:
    """Where clients send to, and the servers that work for it."""

    url: str
    servers: tuple[Server, ...]


@contextlib.contextmanager
def arms(directory: Path) -> Iterator[dict[str, Arm]]:
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(plain_vllm(directory))
        audit = {"audit": {"log": str(directory / "audit.jsonl")}}
        flags = policy_arguments({**POLICY, **audit})
        guarded = stack.enter_context(guarded_vllm(directory, flags))
        found = {OFF: Arm(plain.url, (plain,)), VAUBAN: Arm(guarded.url, (guarded,))}
        for name, environ in PROXIES.items():
            judge = stack.enter_context(
                uvicorn_app("benchmarks.peer:classifier", directory, environ)
            )
            ways = {**environ, "PEER_UPSTREAM": plain.url, "PEER_CLASSIFIER": judge.url}
            proxy = stack.enter_context(uvicorn_app("benchmarks.peer:proxy", directory, ways))
            found[name] = Arm(proxy.url, (plain, judge, proxy))
        yield found


@contextlib.contextmanager
def alone(arm: Arm, everything: Sequence[Server]) -> Iterator[None]:
    """Only this arm's servers run."""
    idle = [server for server in everything if server not in arm.servers]
    for server in idle:
        server.pause()
    try:
        yield
    finally:
        for server in idle:
            server.resume()


def run(found: dict[str, Arm], *, repeats: int, per_client: int) -> Iterator[Measure]:
    everything = list({id(s): s for arm in found.values() for s in arm.servers}.values())
    timings: dict[tuple[str, int], list[list[Timing]]] = {}
    for arm in found.values():
        closed_loop(arm.url, max(CLIENTS), 2 * max(CLIENTS))
    names = list(found)
    for turn in range(repeats):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for clients in CLIENTS:
            for name in order:
                with alone(found[name], everything):
                    closed_loop(found[name].url, clients, 2 * clients)
                    requests = max(24, per_client * clients)
                    answered = closed_loop(found[name].url, clients, requests)
                timings.setdefault((name, clients), []).append(answered)
    yield from _measures(names, timings)


def _measures(
    names: Sequence[str], timings: dict[tuple[str, int], list[list[Timing]]]
) -> Iterator[Measure]:
    def p50_ms(name: str, clients: int) -> list[float]:
        return [1e3 * percentile([t.first for t in r], 0.5) for r in timings[name, clients]]

    for clients in CLIENTS:
        off = p50_ms(OFF, clients)
        added = {
            name: tuple(a - b for a, b in zip(p50_ms(name, clients), off, strict=True))
            for name in names
            if name != OFF
        }
        yield Measure(f"first token p50, off ({clients} clients)", "ms", tuple(off))
        for name, values in added.items():
            # Ours must be below every peer, so the target of ours is the best of them.
            best = min(statistics.median(added[peer]) for peer in PROXIES)
            yield Measure(
                f"first token added p50, {name} ({clients} clients)", "ms", values,
                baseline=statistics.median(off), at_most=best if name == VAUBAN else None,
            )  # fmt: skip
        for name in names:
            p95 = [1e3 * percentile([t.first for t in r], 0.95) for r in timings[name, clients]]
            yield Measure(f"first token p95, {name} ({clients} clients)", "ms", tuple(p95))
            total = [1e3 * percentile([t.total for t in r], 0.5) for r in timings[name, clients]]
            yield Measure(f"whole answer p50, {name} ({clients} clients)", "ms", tuple(total))


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, help="default: 2 with --quick, else 5")
    given = parser.parse_args(argv)
    repeats, per_client = (2, 2) if given.quick else (5, 3)
    repeats = given.repeats or repeats
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, arms(Path(scratch)) as found:
        measures = list(run(found, repeats=repeats, per_client=per_client))
    result = Result(
        "vs_proxy",
        {"clients": CLIENTS, "repeats": repeats, "requests_per_client": per_client,
         "words": PROMPT_WORDS, "max_tokens": MAX_TOKENS, "arms": [OFF, VAUBAN, *PROXIES]},
        POLICY, measures,
    )  # fmt: skip
    result.show(Console(width=130))
    result.write(suffix="-quick" if given.quick else "")
    return result


if __name__ == "__main__":
    main()
