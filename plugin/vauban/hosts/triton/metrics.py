"""Triton's custom metrics: verdicts and scores, on tritonserver's own /metrics.

Models let go of them in `finalize`: once the backend's memory is gone, freeing one ends the process
with a segmentation fault. Metrics go before their family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vauban.access.standing import PROPOSE, Transition
from vauban.telemetry import Decision
from vauban.types import Evidence, Reason

SCORE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
EXTRACTION_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Counted:
    """A counter with labels. Label values are vauban's own words, so their number is bounded.

    :param utils: `triton_python_backend_utils`; only the backend's own process has it.
    """

    def __init__(self, utils: Any, name: str, description: str) -> None:
        family = utils.MetricFamily
        self._family = family(name=name, description=description, kind=family.COUNTER)
        self._counters: dict[tuple[str, ...], Any] = {}

    def add(self, number: int, labels: Mapping[str, str]) -> None:
        key = tuple(labels.values())
        if key not in self._counters:
            self._counters[key] = self._family.Metric(labels=dict(labels))
        self._counters[key].increment(number)

    def close(self) -> None:
        self._counters.clear()
        del self._family


class TritonMetrics:
    """What `guard_encoder` counts."""

    def __init__(self, utils: Any) -> None:
        family = utils.MetricFamily
        self._requests = Counted(utils, "vauban_requests_total", "Decisions.")
        self._failures = Counted(
            utils, "vauban_screening_failures_total", "Requests that could not be screened."
        )
        self._score_family = family(
            name="vauban_injection_score",
            description="Calibrated injection score.",
            kind=family.HISTOGRAM,
        )
        self._batch_family = family(
            name="vauban_encoder_batch_size",
            description="Requests that shared an encoder pass, per request.",
            kind=family.HISTOGRAM,
        )
        self._score = self._score_family.Metric(labels={}, buckets=list(SCORE_BUCKETS))
        self._batch = self._batch_family.Metric(labels={}, buckets=list(BATCH_BUCKETS))

    def observe(self, decision: Decision) -> None:
        self._requests.add(1, {"action": decision.action, "reason": decision.reason})
        if decision.reason.startswith(("screen_", "unread")):
            self._failures.add(1, {"reason": decision.reason})
        if decision.score is not None:
            self._score.observe(decision.score)
        if decision.batch:
            self._batch.observe(decision.batch)

    def close(self) -> None:
        self._requests.close()
        self._failures.close()
        del self._score, self._batch, self._score_family, self._batch_family


class OutputMetrics:
    """What a model that lets answers out counts.

    :param model: its name, a label: two models must not share a metric, which goes with either.
    """

    def __init__(self, utils: Any, model: str) -> None:
        self._model = model
        self._found = Counted(utils, "vauban_output_findings_total", "What was found in answers.")

    def observe(self, findings: Mapping[tuple[str, str], int]) -> None:
        for (detector, action), number in findings.items():
            labels = {"model": self._model, "detector": detector, "action": action}
            self._found.add(number, labels)

    def close(self) -> None:
        self._found.close()


class UserMetrics:
    """What `guard_extraction` counts."""

    def __init__(self, utils: Any) -> None:
        family = utils.MetricFamily
        self._failures = Counted(
            utils, "vauban_screening_failures_total", "Requests that could not be screened."
        )
        self._moves = Counted(
            utils, "vauban_standing_transitions_total",
            "Changes of level; by detector, operator or time.",
        )  # fmt: skip
        self._proposed = Counted(
            utils, "vauban_services_proposed_total",
            "Callers that might be services nobody has declared.",
        )  # fmt: skip
        self._score_family = family(
            name="vauban_extraction_score",
            description="How unlike honest people a caller's recent queries are, per request.",
            kind=family.HISTOGRAM,
        )
        self._score = self._score_family.Metric(labels={}, buckets=list(EXTRACTION_BUCKETS))
        self._drift_family = family(
            name="vauban_extraction_drift",
            description="Honest spreads by which this server's callers are off the extraction"
            " reference, in the statistic that is off most.",
            kind=family.GAUGE,
        )
        self._drift = self._drift_family.Metric(labels={})

    def observe(self, known: Evidence | Reason) -> None:
        if isinstance(known, Reason):
            self._failures.add(1, {"reason": known.value})
            return
        self._score.observe(known.score)
        if (drift := dict(known.signals).get("drift")) is not None:
            self._drift.set(drift)

    def observe_transition(self, transition: Transition) -> None:
        if transition.action == PROPOSE:
            self._proposed.add(1, {})
        if transition.before is transition.after:
            return
        before, after = transition.before.name.lower(), transition.after.name.lower()
        self._moves.add(1, {"from": before, "to": after, "by": transition.actor})

    def close(self) -> None:
        self._failures.close()
        self._moves.close()
        self._proposed.close()
        del self._score, self._score_family, self._drift, self._drift_family
