"""A result survives a round trip; whatever else is in a file is a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import attack
from pydantic import ValidationError

from vauban.errors import ReportError
from vauban.redteam import result as schema
from vauban.redteam.result import AttackResult, Result, read_result, write_result

Make = Callable[..., Result]


def test_a_round_trip(make_result: Make, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    write_result(make_result(), path)
    assert read_result(path) == make_result()
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_an_attempt_is_counted_once() -> None:
    fields = attack().model_dump()
    for wrong in ({"attempts": 101}, {"wins": 1}, {"errors": {"timeout": 1}}, {"unanswered": 1}):
        with pytest.raises(ValidationError):
            AttackResult(**(fields | wrong))


def test_a_row_is_there_once(make_result: Make) -> None:
    with pytest.raises(ValidationError):
        make_result(attacks=[attack(), attack()])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_says_so(make_result: Make, tmp_path: Path, share: float) -> None:
    path = tmp_path / "r.json"
    write_result(make_result(), path)
    data = path.read_bytes().rstrip()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ReportError, match="cut off"):
        read_result(path)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"schema_version": "1"},
        {"schema_version": True},
        {"extra": 1},
        {"tools": None},
        {"latency": {"source": "server", "added_ms": [float("nan")]}},
        {"latency": {"source": "server", "added_ms": [1e999]}},
        {"attacks": [{}]},
        {"attacks": [attack().model_dump() | {"wins": -1}]},
        {"attacks": [attack().model_dump() | {"name": "a\x1b[2J"}]},
        {"attacks": [attack().model_dump() | {"attempts": "100"}]},
    ],
)
def test_a_hostile_file_is_an_error(
    make_result: Make, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(make_result().model_dump() | change))
    with pytest.raises(ReportError, match=r"r\.json"):
        read_result(path)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[" * 100_000, b"null", b"{}", b"\x00" * 99])
def test_no_json_at_all(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(ReportError):
        read_result(path)


def test_a_file_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(b" " * 101)
    monkeypatch.setattr(schema, "MAX_RESULT_BYTES", 100)
    with pytest.raises(ReportError, match="over 100 bytes"):
        read_result(path)


def test_no_file_and_no_place(make_result: Make, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="can't be read"):
        read_result(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="can't be written"):
        write_result(make_result(), tmp_path / "file" / "r.json")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_result_or_an_error(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    with pytest.raises(ReportError):
        read_result(path)
