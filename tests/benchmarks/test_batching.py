"""Encoder batches counted from an audit log."""

import pytest
from benchmarks.cobatch import Audit, batching
from hypothesis import given
from hypothesis import strategies as st


def decisions(sizes, encode_ms=8.0):
    """What the log says of encoder passes of these sizes."""
    row = {"encode_ms": encode_ms, "queue_ms": 0.0, "hold_ms": 0.0, "front_ms": 0.0}
    return [{**row, "batch": size} for size in sizes for _ in range(size)]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=20))
def test_mean_batch_is_requests_by_passes(sizes):
    found = batching(decisions(sizes))
    assert found.mean_batch == pytest.approx(sum(sizes) / len(sizes))
    assert found.screening_ms == pytest.approx(8.0 * len(sizes) / sum(sizes))


def test_audit_is_read_from_where_it_ended(tmp_path):
    audit = Audit(tmp_path / "audit.jsonl")
    line = '{"event": "decision", "batch": 2}\n'
    audit.path.write_text(line + '{"event": "refused"}\n{"event": "decision", "batch": 0}\n')
    assert len(audit.new_decisions()) == 1
    assert audit.new_decisions() == []
    with audit.path.open("a") as log:
        log.write(line)
    assert len(audit.new_decisions()) == 1
