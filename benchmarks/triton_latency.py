"""What the guard costs in Triton: the LLM alone, the ensemble, and the branching model.

A real tritonserver with the real CPU vLLM and a stand-in model, closed-loop clients over gRPC
streams. Per model and number of clients: p50, p95, p99 of the time to the whole answer, and
requests per second. Beside the LLM alone it tells how much longer the guarded models take with one
client, and how many requests shared an encoder pass. One client asks the three models in turn, so
that a machine that is slow for a while is slow for all of them.

`llm` alone is measured with the engine's own screening of unmarked prompts switched off, else it
would not be alone.

python -m benchmarks.triton_latency [--quick] [--repeats N] [--per-client N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from benchmarks.load import MAX_TOKENS, PROMPT_WORDS
from benchmarks.results import Measure, Result, percentile
from rich.console import Console

from vauban.commands.local_server import free_port, running
from vauban.hosts.triton.render import Models, render
from vauban.hosts.triton.server import Ports, find_server, server_command
from vauban.policy import Policy
from vauban.standin import make_standin, prose

CLIENTS = (1, 8, 32, 64)
MODELS = ("llm", "guarded_llm", "guarded_llm_bls")
MAX_MODEL_LEN = 2048
ADDED_TARGET_MS = 3.0
BATCH_TARGET = 8.0
POLICY: dict[str, Any] = {
    "injection": {"block_at": 1.0, "unmarked": "allow"},
    "audit": {"log": "off"},
}
_seeds = itertools.count(1)


class Client:
    """One connection that sends its next request when the last one is answered."""

    def __init__(self, address: str) -> None:
        self._client = grpcclient.InferenceServerClient(address)
        self._got: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(lambda result, error: self._got.put(error or result))

    def ask(self, model: str) -> float:
        """Milliseconds to the whole answer.

        :raises Exception: Triton's, when the answer is an error.
        """
        sampling = json.dumps({"max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True})
        values = {"text_input": prose(PROMPT_WORDS, next(_seeds)), "sampling_parameters": sampling}
        inputs = []
        for name, value in values.items():
            tensor = grpcclient.InferInput(name, [1], "BYTES")
            tensor.set_data_from_numpy(np.array([value.encode()], object))
            inputs.append(tensor)
        started = time.perf_counter()
        self._client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        while True:
            item = self._got.get(timeout=600)
            if isinstance(item, Exception):
                raise item
            if item.get_response().parameters["triton_final_response"].bool_param:
                return (time.perf_counter() - started) * 1000

    def close(self) -> None:
        self._client.stop_stream()


def closed_loop(address: str, model: str, clients: int, requests: int) -> tuple[list[float], float]:
    """Times of all requests in milliseconds, and requests per second."""
    share = -(-requests // clients)

    def run(client: Client) -> list[float]:
        return [client.ask(model) for _ in range(share)]

    connections = [Client(address) for _ in range(clients)]
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [ms for part in pool.map(run, connections) for ms in part]
    seconds = time.perf_counter() - started
    for client in connections:
        client.close()
    return times, len(times) / seconds


class Encoder:
    """What Triton's statistics say of `guard_encoder`."""

    def __init__(self, address: str) -> None:
        self._client = grpcclient.InferenceServerClient(address)
        self._last = (0, 0, 0.0)
        self.read()

    def read(self) -> tuple[float, float]:
        """Mean batch, and milliseconds of a pass, since the last reading."""
        stats = self._client.get_inference_statistics("guard_encoder", as_json=True)
        found = stats["model_stats"][0]
        passes = int(found.get("execution_count", 0))
        requests = int(found.get("inference_count", 0))
        busy = sum(
            int(batch["compute_infer"]["ns"]) / 1e6 for batch in found.get("batch_stats", [])
        )
        before, self._last = self._last, (requests, passes, busy)
        new = passes - before[1]
        return (requests - before[0]) / max(1, new), (busy - before[2]) / max(1, new)


@dataclass(frozen=True)
class Run:
    """One model under one load. `times`: of each request, ms. `rate`: requests/s. `batch`: requests
    that shared an encoder pass, on average. `encode_ms`: of a pass; the median where there is one
    request at a time, else the mean."""

    times: list[float]
    rate: float
    batch: float
    encode_ms: float


def in_turn(address: str, encoder: Encoder, requests: int) -> dict[str, Run]:
    """One client, which asks each model for its next answer before it asks any for another."""
    times: dict[str, list[float]] = {model: [] for model in MODELS}
    passes: dict[str, list[tuple[float, float]]] = {model: [] for model in MODELS}
    client = Client(address)
    for _ in range(requests):
        for model in MODELS:
            encoder.read()
            times[model].append(client.ask(model))
            passes[model].append(encoder.read())
    client.close()
    return {
        model: Run(
            times[model],
            1000 * requests / sum(times[model]),
            statistics.mean(batch for batch, _ in passes[model]),
            percentile([ms for _, ms in passes[model]], 0.5),
        )
        for model in MODELS
    }


def at_once(address: str, encoder: Encoder, clients: int, requests: int) -> dict[str, Run]:
    found = {}
    for model in MODELS:
        encoder.read()
        times, rate = closed_loop(address, model, clients, requests)
        found[model] = Run(times, rate, *encoder.read())
    return found


def run(address: str, *, repeats: int, per_client: int) -> Iterator[Measure]:
    encoder = Encoder(address)
    for model in MODELS:
        closed_loop(address, model, 8, 16)
    for clients in CLIENTS:
        requests = max(24, per_client * clients)
        runs = [
            in_turn(address, encoder, requests)
            if clients == 1
            else at_once(address, encoder, clients, requests)
            for _ in range(repeats)
        ]
        for model in MODELS:
            yield from _measures(model, clients, runs)


def _measures(model: str, clients: int, runs: list[dict[str, Run]]) -> Iterator[Measure]:
    name = f"{model}, {clients} clients"
    ours = [found[model] for found in runs]
    for share in (0.5, 0.95, 0.99):
        values = tuple(percentile(one.times, share) for one in ours)
        yield Measure(f"p{share * 100:.0f} ({name})", "ms", values)
    yield Measure(f"throughput ({name})", "requests/s", tuple(one.rate for one in ours),
                  lower_is_better=False)  # fmt: skip
    if model == "llm":
        return
    yield Measure(f"an encoder pass ({name})", "ms", tuple(one.encode_ms for one in ours))
    if clients == 1:
        added = tuple(
            percentile(found[model].times, 0.5) - percentile(found["llm"].times, 0.5)
            - found[model].encode_ms
            for found in runs
        )  # fmt: skip
        yield Measure(f"added p50 beside the encoder's time ({name})", "ms", added,
                      at_most=ADDED_TARGET_MS)  # fmt: skip
    yield Measure(
        f"mean encoder batch ({name})", "requests", tuple(one.batch for one in ours),
        at_least=BATCH_TARGET if clients == CLIENTS[-1] else None, lower_is_better=False,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, help="default: 5, quick 1")
    parser.add_argument("--per-client", type=int, help="requests of each client; default: 6, 2")
    given = parser.parse_args(argv)
    repeats = given.repeats or (1 if given.quick else 5)
    per_client = given.per_client or (2 if given.quick else 6)
    policy = Policy.model_validate(POLICY)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        directory = Path(scratch)
        model = make_standin(directory / "standin")
        render(directory / "models", policy, Models(str(model), MAX_MODEL_LEN))
        ports = Ports(free_port(None), free_port(None), free_port(None))
        command, environ = server_command(
            find_server(), directory / "models", policy, address="127.0.0.1", ports=ports,
            environ=os.environ,
        )  # fmt: skip
        address = f"127.0.0.1:{ports.grpc}"
        with running(command, environ, ports.http, directory / "server.log") as server:
            server.wait_ready(lambda _: _ready(address))
            measures = list(run(address, repeats=repeats, per_client=per_client))
    result = Result(
        "triton_latency",
        {"clients": CLIENTS, "repeats": repeats, "requests_per_client": per_client,
         "prompt_words": PROMPT_WORDS, "max_tokens": MAX_TOKENS},
        POLICY, measures,
    )  # fmt: skip
    result.show(Console(width=130))
    result.write(suffix="-quick" if given.quick else "")
    return result


def _ready(address: str) -> bool:
    try:
        return bool(grpcclient.InferenceServerClient(address).is_server_ready(client_timeout=5))
    except grpcclient.InferenceServerException:
        return False


if __name__ == "__main__":
    main()
