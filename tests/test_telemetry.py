"""Audit lines and metrics: what is in them, and what must not be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vauban.errors import ConfigError
from vauban.policy import AuditPolicy
from vauban.telemetry import AuditLog, Decision, Metrics, process_metrics

DECISION = Decision(
    request_id="r1",
    principal="key:ab",
    route="/v1/chat/completions",
    action="block",
    proposed="block",
    reason="prompt_injection",
    policy="0123456789ab",
    score=0.987654321,
    chars=100,
    segments=2,
    tokens=30,
    batch=4,
    front_ms=0.5,
    hold_ms=1.0,
    queue_ms=2.0,
    encode_ms=3.0,
    findings=(("zero_width", 3),),
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def exposed(metrics: Metrics) -> str:
    registry = CollectorRegistry()
    for metric in vars(metrics).values():
        registry.register(metric)
    return generate_latest(registry).decode()


def test_a_decision_is_one_json_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(AuditPolicy(log=path))
    log.decision(DECISION)
    log.refused(request_id="r2", code="route_refused", path="/x")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["event"] == "decision"
    assert first["score"] == 0.9877
    assert first["findings"] == {"zero_width": 3}
    assert set(first) == {*Decision.__dataclass_fields__, "event", "timestamp"}
    assert second["event"] == "refused"
    assert second["code"] == "route_refused"


def test_a_line_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(AuditPolicy(log=path))
    log.decision(DECISION)
    assert path.read_text().count("\n") == 1
    log.decision(DECISION)
    assert path.read_text().count("\n") == 2


def test_the_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text("{}\n")
    AuditLog(AuditPolicy(log=path)).decision(DECISION)
    assert path.read_text().startswith("{}\n")


def test_a_file_that_can_not_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.log"):
        AuditLog(AuditPolicy(log=tmp_path))


def test_off_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    AuditLog(AuditPolicy(log="off")).decision(DECISION)
    assert capsys.readouterr().out == ""


def test_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    AuditLog(AuditPolicy()).decision(DECISION)
    assert json.loads(capsys.readouterr().out)["request_id"] == "r1"


def test_a_line_break_in_a_value_stays_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    AuditLog(AuditPolicy(log=path)).refused(path='/a\n{"event": "decision"}')
    assert len(path.read_text().splitlines()) == 1


def test_added_time_counts_what_a_client_waited_for() -> None:
    assert DECISION.added_ms == 0.5 + 5.0
    assert replace(DECISION, hold_ms=9.0).added_ms == 9.5


def test_metrics_follow_decisions(metrics: Metrics) -> None:
    metrics.observe(DECISION)
    metrics.observe(replace(DECISION, action="allow", reason="clean", score=0.01))
    metrics.observe(replace(DECISION, reason="screen_timeout", score=None, batch=0))
    metrics.refused.labels("route_refused").inc()
    text = exposed(metrics)
    labels = 'action="block",reason="prompt_injection",route="/v1/chat/completions"'
    assert f"vauban_requests_total{{{labels}}} 1.0" in text
    assert 'vauban_screening_failures_total{reason="screen_timeout"} 1.0' in text
    assert 'vauban_refused_total{code="route_refused"} 1.0' in text
    assert "vauban_injection_score_count 2.0" in text
    assert "vauban_encoder_batch_size_sum 8.0" in text
    assert "vauban_front_seconds_count 3.0" in text


def test_no_identity_in_metrics(metrics: Metrics) -> None:
    metrics.observe(DECISION)
    text = exposed(metrics)
    assert "key:ab" not in text
    assert '"r1"' not in text


def test_one_set_of_metrics_per_process() -> None:
    assert process_metrics() is process_metrics()
