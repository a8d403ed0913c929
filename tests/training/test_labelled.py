"""Reading labelled files: what a row is, and what is said of a file that is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from vauban.errors import ConfigError
from vauban.training import labelled
from vauban.training.labelled import labelled_rows, read_labels

GOOD = {"text": "hello", "label": 0, "kind": "benign_chat", "source": "a/b:file.txt", "lang": "en"}
SECRET = "a text that no message may repeat"


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_plain_and_gzipped_files_read_alike(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD), "", json.dumps({"text": "x", "label": 1})]
    plain = write(tmp_path / "rows.jsonl", *lines)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    rows = list(labelled_rows(plain))
    assert rows == list(labelled_rows(packed))
    assert rows[0] == labelled.Row("hello", 0, "benign_chat", "a/b", "en")
    assert rows[1].kind == rows[1].source == rows[1].lang == labelled.UNKNOWN
    assert read_labels(plain) == bytes([0, 1])


def test_only_the_wanted_rows_are_given(tmp_path: Path) -> None:
    lines = [json.dumps({"text": str(i), "label": 0}) for i in range(10)]
    path = write(tmp_path / "rows.jsonl", "", *lines)
    assert [row.text for row in labelled_rows(path, {2, 7}.__contains__)] == ["2", "7"]


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", r'{"text": "a\ud800b", "label": 1}')
    assert [row.text for row in labelled_rows(path)] == ["a?b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{" + SECRET, "line 2 is not valid JSON"),
        ("[" * 100_000, "line 2 is not valid JSON"),
        (json.dumps([SECRET]), "line 2 is not a JSON object"),
        (json.dumps({"label": 1}), 'line 2 has no "text"'),
        (json.dumps({"text": 5, "label": 1}), 'line 2 has no "text"'),
        (json.dumps({"text": SECRET}), 'line 2 has no "label"'),
        (json.dumps({"text": SECRET, "label": 2}), 'line 2 has no "label"'),
        (json.dumps({"text": SECRET, "label": True}), 'line 2 has no "label"'),
        (json.dumps({"text": SECRET, "label": "1"}), 'line 2 has no "label"'),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps(GOOD), line)
    with pytest.raises(ConfigError, match=said) as caught:
        read_labels(path)
    assert SECRET not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    not_gzip = write(tmp_path / "rows.jsonl.gz", json.dumps(GOOD))
    whole = gzip.compress(b"x" * 100_000)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\xff")
    for path, said in [
        (tmp_path / "missing.jsonl", "is no file"),
        (tmp_path, "is no file"),
        (not_gzip, "can't be read"),
        (cut, "can't be read"),
        (binary, "not UTF-8"),
        (write(tmp_path / "empty.jsonl", ""), "has no rows"),
    ]:
        with pytest.raises(ConfigError, match=said):
            read_labels(path)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "MAX_LINE_CHARS", 100)
    path = write(tmp_path / "rows.jsonl", json.dumps(GOOD), json.dumps({**GOOD, "text": "a" * 200}))
    with pytest.raises(ConfigError, match="line 2 is longer than 100 characters"):
        read_labels(path)
