"""Triton's custom metrics: verdicts and scores, on tritonserver's own /metrics."""

from __future__ import annotations

from typing import Any, Final

from vauban.telemetry import Decision

SCORE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class TritonMetrics:
    """
    :param utils: `triton_python_backend_utils`; only the backend's own process has it.

    Label values are vauban's own words, so their number is bounded.
    """

    def __init__(self, utils: Any) -> None:
        family = utils.MetricFamily
        self._requests = family(
            name="vauban_requests_total", description="Decisions.", kind=family.COUNTER
        )
        self._failures = family(
            name="vauban_screening_failures_total",
            description="Requests that could not be screened.",
            kind=family.COUNTER,
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
        self._counters: dict[tuple[str, ...], Any] = {}

    def observe(self, decision: Decision) -> None:
        self._count(self._requests, action=decision.action, reason=decision.reason)
        if decision.reason.startswith(("screen_", "unread")):
            self._count(self._failures, reason=decision.reason)
        if decision.score is not None:
            self._score.observe(decision.score)
        if decision.batch:
            self._batch.observe(decision.batch)

    def _count(self, family: Any, **labels: str) -> None:
        key = (*labels, *labels.values())
        if key not in self._counters:
            self._counters[key] = family.Metric(labels=labels)
        self._counters[key].increment(1)
