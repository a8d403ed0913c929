"""Reading rows, and refusing what is no row."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from vauban.errors import ConfigError
from vauban.training.data import read_rows


def test_rows_are_read(data_dir: Path, tmp_path: Path) -> None:
    rows = read_rows(data_dir / "train.jsonl.gz")
    assert len(rows) == 60
    assert (rows[0].label, rows[0].source, rows[0].license) == (1, "someone/something", "MIT")
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(gzip.decompress((data_dir / "train.jsonl.gz").read_bytes()))
    assert read_rows(plain) == rows


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"text": "a", "label": 2, "kind": "x"}',
        '{"label": 1}',
        '{"text": "a"}',
        '{"text": 5, "label": 1, "kind": "x"}',
    ],
)
def test_bad_lines_are_named_by_number_only(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl.gz"
    good = '{"text": "secret words", "label": 0, "kind": "benign_chat"}'
    path.write_bytes(gzip.compress(f"{good}\n{line}\n".encode()))
    with pytest.raises(ConfigError, match="line 2") as caught:
        read_rows(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"x" * 50)[:-9]])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    if content:
        with pytest.raises(ConfigError):
            read_rows(path)
    else:
        assert read_rows(path) == []
    with pytest.raises(ConfigError):
        read_rows(tmp_path / "missing")
