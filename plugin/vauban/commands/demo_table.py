"""What came out of the demo's requests, and the table of it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.markup import escape
from rich.table import Table

BATCH_METRIC = "vauban_encoder_batch_size"
_COUNT, _SUM, _ALONE = "_count", "_sum", "_bucket 1.0"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `verdict`: the guard's, or `HTTP n` where it gave none."""

    attack: bool
    verdict: str
    reason: str
    score: float | None = None
    added_ms: float | None = None

    @property
    def expected(self) -> bool:
        """Attacks are to be blocked; everything else is to be answered, flagged or not."""
        return self.verdict == "block" if self.attack else self.verdict in ("allow", "flag")


Rows = Sequence[tuple[str, Sequence[Outcome]]]
"""Titles, each with the outcome of one request or of several that were sent at once."""


def all_expected(rows: Rows) -> bool:
    return all(outcome.expected for _, outcomes in rows for outcome in outcomes)


def results_table(rows: Rows) -> Table:
    """One line per title; several requests are counted and summed up."""
    table = Table("", "request", "verdict", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("score", justify="right")
    table.add_column("reason")
    table.add_column("added ms", justify="right")
    for title, outcomes in rows:
        table.add_row(
            "[green]✓[/]" if all_expected([(title, outcomes)]) else "[red]✗[/]",
            escape(title),
            _counted([outcome.verdict for outcome in outcomes]),
            _range([x.score for x in outcomes if x.score is not None]),
            _counted([outcome.reason for outcome in outcomes]),
            _median([x.added_ms for x in outcomes if x.added_ms is not None]),
        )
    return table


def _counted(words: Sequence[str]) -> str:
    if len(words) == 1:
        return escape(words[0])
    return escape("\n".join(f"{count} {word}" for word, count in Counter(words).most_common()))


def _range(numbers: Sequence[float]) -> str:
    return "\n".join(dict.fromkeys(f"{edge(numbers):.3f}" for edge in (min, max) if numbers))


def _median(numbers: Sequence[float]) -> str:
    if len(numbers) < 2:
        return "".join(f"{number:.1f}" for number in numbers)
    return f"median\n{statistics.median(numbers):.1f}"


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the requests of a burst shared encoder passes."""

    screened: int
    shared: int
    mean_batch: float

    def __str__(self) -> str:
        return (
            f"{self.shared} of {self.screened} requests shared their encoder pass with others;"
            f" a request's pass held {self.mean_batch:.1f} requests on average"
        )


def sharing_between(before: str, after: str) -> Sharing | None:
    """What two readings of /metrics say of the requests between them; None if none was encoded."""
    old, new = _batch_samples(before), _batch_samples(after)
    count, total, alone = (new.get(key, 0) - old.get(key, 0) for key in (_COUNT, _SUM, _ALONE))
    if count < 1:
        return None
    return Sharing(int(count), int(count - alone), total / count)


def _batch_samples(metrics: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics):
        if family.name == BATCH_METRIC:
            for sample in family.samples:
                name = f"{sample.name.removeprefix(BATCH_METRIC)} {sample.labels.get('le', '')}"
                found[name.rstrip()] = sample.value
    return found
