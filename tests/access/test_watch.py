from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from vauban.access import watch
from vauban.access.watch import WatchedFile, read_trusted_file
from vauban.errors import ConfigError


def parse_number(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise ConfigError("not a number") from None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("1")
    path.chmod(0o600)
    return path


def replace(path: Path, text: str) -> None:
    other = path.with_name("other")
    other.write_text(text)
    other.chmod(0o600)
    other.replace(path)


def watched(path: Path, clock, *, private: bool = True) -> WatchedFile[int]:
    return WatchedFile(path, parse_number, clock=clock, private=private)


def test_a_change_takes_effect_within_a_second(path: Path, clock) -> None:
    number = watched(path, clock)
    replace(path, "2")
    clock.advance(0.5)
    assert number.current() == 1
    clock.advance(0.5)
    assert number.current() == 2


def test_the_file_is_looked_at_once_a_second_at_most(
    path: Path, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = watched(path, clock)
    looks = 0
    original = Path.stat

    def counting(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        nonlocal looks
        looks += 1
        return original(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", counting)
    for _ in range(100):
        clock.advance(0.05)
        number.current()
    assert 4 <= looks <= 5


def test_an_unchanged_file_is_not_read_again(
    path: Path, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = watched(path, clock)

    def fail(path: Path) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(watch, "read_trusted_file", fail)
    clock.advance(10)
    assert number.current() == 1


@pytest.mark.parametrize("broken", ["missing", "damaged", "writable", "folder"])
def test_a_file_gone_bad_gives_nothing_until_it_is_good_again(
    path: Path, clock, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    number = watched(path, clock)
    if broken == "missing":
        path.unlink()
    elif broken == "damaged":
        replace(path, "x")
    elif broken == "writable":
        path.chmod(0o666)
    else:
        path.unlink()
        path.mkdir()
    for _ in range(5):
        clock.advance(1)
        assert number.current() is None
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1  # said once, not once a second
    if broken == "folder":
        path.rmdir()
    replace(path, "3")
    clock.advance(1)
    assert number.current() == 3


@pytest.mark.parametrize("content", ["", "x"])
def test_a_bad_file_stops_the_start(path: Path, clock, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"number: not a number"):
        watched(path, clock)


def test_a_missing_file_stops_the_start(tmp_path: Path, clock) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        watched(tmp_path / "none", clock)


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_trusted_file(pipe)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_trusted_file(tmp_path)


def test_size_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_FILE_BYTES", 8)
    path.write_text("12345678")
    assert read_trusted_file(path).data == b"12345678"
    path.write_text("123456789")
    with pytest.raises(ConfigError, match="larger"):
        read_trusted_file(path)


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert read_trusted_file(path).data == b"1"
    real = os.fstat

    def of_stranger(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[4] = owner + 1
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", of_stranger)
    with pytest.raises(ConfigError, match="belongs to user"):
        read_trusted_file(path)


def test_being_readable_by_others_is_a_warning_for_private_files(
    path: Path, clock, caplog: pytest.LogCaptureFixture
) -> None:
    path.chmod(0o644)
    assert watched(path, clock, private=False).current() == 1
    assert not caplog.records
    assert watched(path, clock).current() == 1
    assert "can be read by other users" in caplog.text
