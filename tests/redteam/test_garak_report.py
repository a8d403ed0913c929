"""Reports of garak 0.17.1. The golden one is from a real run; its texts are replaced by hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import ReportError
from vauban.redteam.garak_report import read_report
from vauban.redteam.outcome import Outcome

GOLDEN = Path(__file__).parent / "golden" / "garak.report.jsonl"
BLOCKED = Outcome("blocked", "classifier")


def nothing(_: str) -> Outcome | None:
    return None


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in GOLDEN.read_text().splitlines()]


def written(tmp_path: Path, entries: list[Any]) -> Path:
    path = tmp_path / "report.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_counts_are_garaks_own() -> None:
    report = read_report(GOLDEN, nothing)
    assert (report.finished, report.version) == (True, "0.17.1")
    evals = {(e["probe"], e["detector"]): e for e in lines() if e["entry_type"] == "eval"}
    assert len(report.attacks) == len(evals) == 6
    for attack in report.attacks:
        own = evals[attack.name, attack.judge]
        assert attack.wins == own["fails"]
        assert attack.resisted == own["passed"]
        assert attack.unanswered == own["nones"]
        assert attack.attempts == own["total_processed"]
    assert sum(a.wins for a in report.attacks) > 0
    assert sum(a.unanswered for a in report.attacks) > 0
    assert [a.name for a in report.attacks if a.weak_judge] == ["doctor.Puppetry"]


def test_the_golden_file_holds_no_text() -> None:
    for entry in lines():
        if entry["entry_type"] == "attempt":
            for turn in entry["prompt"]["turns"]:
                assert turn["content"]["text"].startswith("sha256:")


@pytest.mark.parametrize("outcome", [BLOCKED, Outcome("error", "timeout")])
def test_what_the_relay_knows_wins_over_the_judge(outcome: Outcome) -> None:
    """A refusal text that the judge takes for a success is a block all the same."""
    for attack in read_report(GOLDEN, lambda _: outcome).attacks:
        assert attack.wins == attack.resisted == attack.unanswered == 0
        found = attack.blocked if outcome is BLOCKED else attack.errors
        assert found == {outcome.detail: attack.attempts}


def test_an_attempt_that_was_not_judged_is_not_counted(tmp_path: Path) -> None:
    entries = [e for e in lines() if e.get("status") != 2]
    assert read_report(written(tmp_path, entries), nothing).attacks == []


def test_a_killed_tool_leaves_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    whole = GOLDEN.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    report = read_report(path, nothing)
    assert not report.finished
    assert 0 < len(report.attacks) < 6


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [1],
        [{"entry_type": "completion"}],
        [{"entry_type": "init", "garak_version": "0.17.1"}, "text"],
        [
            {"entry_type": "init", "garak_version": "0.17.1"},
            {"entry_type": "attempt", "status": 2},
        ],
    ],
)
def test_not_a_report(tmp_path: Path, entries: list[Any]) -> None:
    with pytest.raises(ReportError, match=r"report\.jsonl"):
        read_report(written(tmp_path, entries), nothing)


@pytest.mark.parametrize(
    "change",
    [
        {"probe_classname": None},
        {"probe_classname": "x" * 300},
        {"probe_classname": "a\x1b[2J"},
        {"detector_results": {}},
        {"detector_results": {"a": []}},
        {"detector_results": {"a": ["x"] * 3}},
        {"detector_results": []},
        {"outputs": None},
        {"prompt": None},
        {"prompt": {"turns": [{"role": "user", "content": None}]}},
    ],
)
def test_a_hostile_attempt(tmp_path: Path, change: dict[str, Any]) -> None:
    first = next(e for e in lines() if e.get("status") == 2)
    entries = [{"entry_type": "init", "garak_version": "0.17.1"}, first | change]
    with pytest.raises(ReportError):
        read_report(written(tmp_path, entries), nothing)


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    rows = GOLDEN.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([rows[0], rows[1][:50], *rows[2:]]))
    with pytest.raises(ReportError, match="line 2"):
        read_report(path, nothing)


@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    with pytest.raises(ReportError):
        read_report(path, nothing)
