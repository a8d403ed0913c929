"""Reports of the PyRIT driver, and the plan it is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import ReportError
from vauban.redteam import pyrit_driver, pyrit_run, relay
from vauban.redteam.objectives import OBJECTIVES
from vauban.redteam.outcome import Outcome
from vauban.redteam.pyrit_run import Attacker, PyritSettings, read_pyrit_report

GOLDEN = Path(__file__).parent / "golden" / "pyrit.report.jsonl"
START = {"type": "start", "pyrit": "1.1.0"}


def knowing(**outcomes: Outcome) -> relay.Relay:
    made = relay.Relay("http://127.0.0.1:1")
    for number, outcome in outcomes.items():
        made.books.write(f"attempt:{number}", outcome, relay.Bounds())
    return made


def attempt(number: str, outcome: str, **more: Any) -> dict[str, Any]:
    return {"type": "attempt", "name": "base64", "number": number, "outcome": outcome, **more}


def written(tmp_path: Path, entries: list[Any]) -> Path:
    path = tmp_path / "report.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_a_report_of_a_real_run() -> None:
    rows, finished = read_pyrit_report(GOLDEN, knowing())
    assert finished
    attempts = [json.loads(line) for line in GOLDEN.read_text().splitlines()[1:-1]]
    assert sum(row.attempts for row in rows) == len(attempts)
    assert sum(row.wins for row in rows) == sum(a["outcome"] == "success" for a in attempts)
    assert {"base64", "direct", "multi_turn", "jailbreak"} <= {row.name for row in rows}


def test_who_won_and_what_stood_in_the_way(tmp_path: Path) -> None:
    entries = [
        START,
        attempt("a", "success"),
        attempt("b", "failure"),
        attempt("c", "failure"),
        attempt("d", "error"),
        attempt("e", "error", error="ValueError"),
        attempt("f", "undetermined"),
        attempt("g", "skipped"),
        {"type": "end"},
    ]
    books = knowing(b=Outcome("blocked", "classifier"), d=Outcome.error("timeout"))
    (row,), finished = read_pyrit_report(written(tmp_path, entries), books)
    assert finished
    assert (row.attempts, row.wins, row.resisted, row.unanswered) == (6, 1, 1, 1)
    assert row.blocked == {"classifier": 1}
    assert row.errors == {"timeout": 1, "tool": 1}


def test_the_last_of_several_requests_counts(tmp_path: Path) -> None:
    books = knowing(a=Outcome("answered"))
    books.books.write("attempt:a", Outcome("blocked", "classifier"), relay.Bounds())
    (row,), finished = read_pyrit_report(written(tmp_path, [START, attempt("a", "failure")]), books)
    assert not finished
    assert row.blocked == {"classifier": 1}


@pytest.mark.parametrize(
    "entries",
    [[], [1], [{}], [{"type": "end"}], [START, {"type": "attempt"}, START], [START, None, START],
     [START, attempt("a", "success") | {"name": "x" * 300}]],
)  # fmt: skip
def test_not_a_report(tmp_path: Path, entries: list[Any]) -> None:
    with pytest.raises(ReportError):
        read_pyrit_report(written(tmp_path, entries), knowing())


@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    with pytest.raises(ReportError):
        read_pyrit_report(path, knowing())


def test_the_plan_numbers_every_attempt_once() -> None:
    settings = PyritSettings.of("quick", attacker=Attacker("http://x/v1", "m"))
    plan = pyrit_run._plan("http://relay", "m", settings, 1)
    numbers = [a["number"] for a in plan["attempts"]]
    assert len(set(numbers)) == len(numbers)
    assert all(a["marker"] for a in plan["attempts"])
    assert json.loads(json.dumps(plan))["attacker"] == "http://x/v1"
    by_model = [a for a in plan["attempts"] if a.get("attacker")]
    assert {a["name"] for a in by_model} == {"attacker_model"}
    assert len(by_model) == len(OBJECTIVES)


@pytest.mark.parametrize("profile", ["ci", "quick", "full"])
def test_a_profile_tries_as_many_objectives_as_it_says(profile: str) -> None:
    settings = PyritSettings.of(profile)
    plan = pyrit_run._plan("http://relay", "m", settings, 1)
    direct = [a["objective"] for a in plan["attempts"] if a["name"] == "direct"]
    assert len(set(direct)) == settings.objectives
    assert any("system" in a for a in plan["attempts"])


def test_both_sides_name_the_header_alike() -> None:
    assert pyrit_driver.ATTEMPT_HEADER == relay.ATTEMPT_HEADER
