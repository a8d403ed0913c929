"""Where a server's time went: its own metrics, before a load and after it."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

STAGES = {
    "front": "vauban_front_seconds",
    "encoder queue": "vauban_encoder_queue_seconds",
    "encoder pass": "vauban_encoder_seconds",
    "LLM queue": "vllm:request_queue_time_seconds",
    "LLM prefill": "vllm:request_prefill_time_seconds",
    "LLM decode": "vllm:request_decode_time_seconds",
}
BATCH = "vauban_encoder_batch_size"

Samples = Mapping[tuple[str, str], float]
"""(name, upper bound of the bucket or "") to the value, summed over all other labels."""


@dataclass(frozen=True)
class Stages:
    """`mean_ms`: per request, of the stages that the server has. `batches`: for each bucket of
    encoder batch sizes (its upper bound) the share of requests in it."""

    mean_ms: Mapping[str, float]
    batches: Mapping[int, float]


def scrape(url: str) -> Samples:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:  # noqa: S310 - loopback
        return samples(answer.read().decode())


def samples(text: str) -> Samples:
    """:param text: Prometheus' text format."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, sample.labels.get("le", ""))
            found[key] = found.get(key, 0.0) + sample.value
    return found


def between(before: Samples, after: Samples) -> Stages:
    def grown(name: str, le: str = "") -> float:
        return after.get((name, le), 0.0) - before.get((name, le), 0.0)

    means = {
        stage: 1e3 * grown(f"{name}_sum") / count
        for stage, name in STAGES.items()
        if (count := grown(f"{name}_count")) > 0
    }
    bounds = sorted(float(le) for name, le in after if name == f"{BATCH}_bucket")
    finite = [bound for bound in bounds if bound != float("inf")]
    shares, total, below = {}, grown(f"{BATCH}_count"), 0.0
    for bound in finite if total else ():
        upto = grown(f"{BATCH}_bucket", str(bound))
        shares[int(bound)] = (upto - below) / total
        below = upto
    return Stages(means, shares)
