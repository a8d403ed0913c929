"""The secret and the directory that the processes of one server share."""

from __future__ import annotations

import os
import shutil

import pytest

from vauban.commands.serve import server_command
from vauban.errors import ConfigError
from vauban.hosts.vllm.runtime import DIRECTORY_VARIABLE, MADE_VARIABLE, open_runtime
from vauban.mark import SECRET_VARIABLE

GIVEN = "ab" * 32


@pytest.fixture(autouse=True)
def _no_runtime(monkeypatch):
    """As before any server; what a test makes is taken away afterwards."""
    for name in (SECRET_VARIABLE, DIRECTORY_VARIABLE, MADE_VARIABLE):
        monkeypatch.setenv(name, "")  # so that it is known, and put back
        monkeypatch.delenv(name)
    yield
    if made := os.environ.get(DIRECTORY_VARIABLE):
        shutil.rmtree(made, ignore_errors=True)


def test_made_once_and_inherited():
    first, second = open_runtime(), open_runtime()
    assert first.directory == second.directory
    assert first.directory.stat().st_mode & 0o077 == 0
    assert not first.given
    assert not second.given
    assert second.sealer.open(b"why", first.sealer.seal(b"why", b"data")) == b"data"


def test_another_server_started_from_this_process_inherits_nothing_that_was_made():
    open_runtime()
    _, environ = server_command("MODEL", [])
    assert not {SECRET_VARIABLE, DIRECTORY_VARIABLE, MADE_VARIABLE} & environ.keys()


def test_another_server_inherits_the_operators_secret(monkeypatch):
    monkeypatch.setenv(SECRET_VARIABLE, GIVEN)
    runtime = open_runtime()
    assert runtime.given
    _, environ = server_command("MODEL", [])
    assert environ[SECRET_VARIABLE] == GIVEN
    assert DIRECTORY_VARIABLE not in environ


def test_another_server_inherits_the_operators_directory(monkeypatch, tmp_path):
    tmp_path.chmod(0o700)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    assert open_runtime().directory == tmp_path
    _, environ = server_command("MODEL", [])
    assert environ[DIRECTORY_VARIABLE] == str(tmp_path)
    assert SECRET_VARIABLE not in environ


def test_a_directory_that_others_can_enter_is_refused(monkeypatch, tmp_path):
    tmp_path.chmod(0o755)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="mode 0700"):
        open_runtime()


def test_a_malformed_secret_is_refused(monkeypatch):
    monkeypatch.setenv(SECRET_VARIABLE, "no hex")
    with pytest.raises(ConfigError, match=SECRET_VARIABLE):
        open_runtime()
