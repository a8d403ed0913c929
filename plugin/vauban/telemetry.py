"""Metrics and audit events. Ids, counts, scores and reasons; never text, keys or arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import MappingProxyType
from typing import IO, Any, Final

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from vauban.access.standing import PROPOSE, Transition
from vauban.errors import ConfigError
from vauban.policy import AuditPolicy
from vauban.recent import RecentEvents
from vauban.types import Evidence, Level, Reason

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision as it is audited and counted. Times in milliseconds.

    `front_ms`: reading, cleaning, framing and sealing in the API server. `hold_ms`: how long an
    answer that was ready waited for its verdict. `queue_ms` and `encode_ms`: in the encoder,
    beside the main model's own work. `standing`: the
    caller's level. `chars`: characters of untrusted text.
    """

    request_id: str
    principal: str
    route: str
    action: str
    proposed: str
    reason: str
    policy: str
    standing: str = "clear"
    score: float | None = None
    chars: int = 0
    segments: int = 0
    tokens: int = 0
    batch: int = 0
    front_ms: float = 0.0
    hold_ms: float = 0.0
    queue_ms: float = 0.0
    encode_ms: float = 0.0
    findings: tuple[tuple[str, int], ...] = ()

    @property
    def added_ms(self) -> float:
        """What the guard added to the time to first token, at most."""
        return self.front_ms + max(self.hold_ms, self.queue_ms + self.encode_ms)


class Metrics:
    """Prometheus metrics of one process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, what, registry=registry, buckets=buckets)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        self.requests = counter("vauban_requests", "Decisions.", "route", "action", "reason")
        self.refused = counter("vauban_refused", "Requests refused before screening.", "code")
        self.output = counter(
            "vauban_output_findings", "What was found in answers.", "detector", "action"
        )
        self.tool_calls, self.approvals = _tool_counters(registry)
        self.failures = counter(
            "vauban_screening_failures", "Requests that could not be screened.", "reason"
        )
        self.score = histogram(
            "vauban_injection_score",
            "Calibrated injection score.",
            (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
        )
        self.extraction = histogram(
            "vauban_extraction_score",
            "How unlike honest people a caller's recent queries are, per request.",
            (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        )
        self.drift = Gauge(
            "vauban_extraction_drift",
            "Honest spreads by which this server's callers are off the extraction reference, in the"
            " statistic that is off most.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.batch = histogram(
            "vauban_encoder_batch_size",
            "Requests that shared an encoder pass, per request.",
            (1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.encode = histogram(
            "vauban_encoder_seconds", "Encoder pass a request took part in.", _SECONDS
        )
        self.queue = histogram("vauban_encoder_queue_seconds", "Wait for the encoder.", _SECONDS)
        self.front = histogram(
            "vauban_front_seconds", "Reading, cleaning and framing a request.", _SECONDS
        )
        self.in_flight = Gauge(
            "vauban_in_flight", "Guarded requests being served.", registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip

        self.principals = Gauge(
            "vauban_principals", "Principals at each level.", ("level",), registry=registry,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.transitions, self.proposed = _standing_counters(registry)

    def count_levels(self, levels: Mapping[Level, int]) -> None:
        for level in Level:
            if level is not Level.CLEAR:
                self.principals.labels(level.name.lower()).set(levels.get(level, 0))

    def observe_evidence(self, known: Evidence | Reason) -> None:
        if isinstance(known, Reason):
            self.failures.labels(known.value).inc()
            return
        self.extraction.observe(known.score)
        if (drift := dict(known.signals).get("drift")) is not None:
            self.drift.set(drift)

    def observe_transition(self, transition: Transition) -> None:
        if transition.action == PROPOSE:
            self.proposed.inc()
        if transition.before is not transition.after:
            self.transitions.labels(
                transition.before.name.lower(), transition.after.name.lower(), transition.actor
            ).inc()

    def observe(self, decision: Decision) -> None:
        self.requests.labels(decision.route, decision.action, decision.reason).inc()
        self.front.observe(decision.front_ms / 1000)
        if decision.score is not None:
            self.score.observe(decision.score)
        if decision.reason.startswith(("screen_", "unread")):
            self.failures.labels(decision.reason).inc()
        if decision.batch:
            self.batch.observe(decision.batch)
            self.encode.observe(decision.encode_ms / 1000)
            self.queue.observe(decision.queue_ms / 1000)


def _tool_counters(registry: CollectorRegistry) -> tuple[Counter, Counter]:
    calls = "Tool calls in answers, by what was decided about them."
    steps = "What happened to tool calls that wait for a person."
    return (
        Counter("vauban_tool_calls", calls, ("decision", "reason"), registry=registry),
        Counter("vauban_approvals", steps, ("action",), registry=registry),
    )


def _standing_counters(registry: CollectorRegistry) -> tuple[Counter, Counter]:
    moves = "Changes of level; by detector, operator or time."
    proposed = "Callers that might be services nobody has declared."
    labels = ("from", "to", "by")
    return (
        Counter("vauban_standing_transitions", moves, labels, registry=registry),
        Counter("vauban_services_proposed", proposed, registry=registry),
    )


@cache
def process_metrics() -> Metrics:
    """The metrics of this process; Prometheus allows each name once in a registry."""
    return Metrics()


class AuditLog:
    """One JSON line per event.

    :param recent: keeps the newest events, also where none are written.
    :raises ConfigError: the file can't be opened for appending.
    """

    def __init__(self, policy: AuditPolicy, recent: RecentEvents | None = None) -> None:
        self._recent = recent
        self._stream: IO[str] | None = None
        if policy.log == "stdout":
            self._stream = sys.stdout
        elif policy.log != "off":
            try:
                self._stream = open(policy.log, "a", encoding="utf-8")  # noqa: SIM115, PTH123
            except OSError as error:
                raise ConfigError(f"audit.log: {policy.log}: {error.strerror}") from None
        self._log = (
            structlog.wrap_logger(
                structlog.WriteLogger(self._stream),
                processors=[
                    structlog.processors.TimeStamper(fmt="iso", utc=True),
                    structlog.processors.JSONRenderer(),
                ],
                cache_logger_on_first_use=True,
            )
            if self._stream is not None
            else None
        )

    def decision(self, decision: Decision, excerpt: Mapping[str, Any] | None = None) -> None:
        """:param excerpt: a text to be shown and never written (`Excerpts`)."""
        fields = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(decision).items()
        }
        fields["findings"] = dict(decision.findings)
        self._write("decision", fields, {"excerpt": excerpt} if excerpt else {})

    def transition(self, transition: Transition) -> None:
        """A change of a standing. An operator's reason stays in the ledger: it is a text."""
        evidence = transition.evidence
        known = (
            {}
            if evidence is None
            else {
                "score": round(evidence.score, 4),
                "queries": evidence.queries,
                "signals": {name: round(value, 4) for name, value in evidence.signals},
                "campaign": evidence.campaign,
                "proposed": evidence.proposed,
            }
        )
        fields = {
            "principal": transition.principal,
            "action": transition.action,
            "by": transition.by,
            "until": transition.until,
            "from": transition.before.name.lower(),
            "to": transition.after.name.lower(),
            **known,
        }
        self._write("standing", fields)

    def output(self, **fields: Any) -> None:
        self._write("output", fields)

    def tool_call(self, **fields: Any) -> None:
        self._write("tool_call", fields)

    def approval(self, **fields: Any) -> None:
        self._write("approval", fields)

    def sandbox(self, **fields: Any) -> None:
        if self._log is not None:
            self._log.info("sandbox", **fields)

    def refused(self, **fields: Any) -> None:
        self._write("refused", fields)

    def _write(
        self, event: str, fields: Mapping[str, Any], only_shown: Mapping[str, Any] = _NOTHING
    ) -> None:
        if self._recent is not None:
            self._recent.add({"event": event, **fields, **only_shown})
        if self._log is not None:
            self._log.info(event, **fields)
