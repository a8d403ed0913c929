"""Bundles between steps: only ours open, for what they are, while they are fresh, once."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import ConfigError, MalformedRequest
from vauban.hosts.triton import seal as seal_module
from vauban.hosts.triton.seal import VALID_S, Bundle, Once, Seal, SharedOnce, server_secret

SECRET = bytes(range(32))


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=20), max_size=4), st.binary())
def test_what_is_closed_opens_as_it_was(fields: dict[str, str], data: bytes) -> None:
    bundle = Bundle("t", fields, data)
    assert Seal(SECRET).open("p", Seal(SECRET).close("p", bundle)) == bundle


@given(st.binary(max_size=200))
def test_nothing_else_opens(data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        Seal(SECRET).open("p", data)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_closes_it(place: int, change: int) -> None:
    sealed = bytearray(Seal(SECRET).close("p", Bundle("t", {"a": 1}, b"data")))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(MalformedRequest):
        Seal(SECRET).open("p", bytes(sealed))


def test_a_purpose_and_a_secret_are_not_interchangeable() -> None:
    sealed = Seal(SECRET).close("prompt", Bundle("t", {}))
    for seal, purpose in ((Seal(SECRET), "windows"), (Seal(bytes(32)), "prompt")):
        with pytest.raises(MalformedRequest):
            seal.open(purpose, sealed)


def test_text_does_not_stand_in_what_travels() -> None:
    assert b"secret words" not in Seal(SECRET).close("p", Bundle("t", {"a": "secret words"}))


def test_a_bundle_ages() -> None:
    now = [1000.0]
    seal = Seal(SECRET, lambda: now[0])
    sealed = seal.close("p", Bundle("t", {}))
    now[0] += VALID_S - 1
    assert seal.open("p", sealed).ticket == "t"
    now[0] += 2
    with pytest.raises(MalformedRequest, match="too long ago"):
        seal.open("p", sealed)


def test_a_ticket_is_taken_once_and_forgotten_when_it_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    once = Once(lambda: now[0])
    monkeypatch.setattr(seal_module, "MAX_SEEN", 2)
    once.take("a")
    with pytest.raises(MalformedRequest):
        once.take("a")
    once.take("b")
    with pytest.raises(MalformedRequest):  # full: no ticket may be forgotten early
        once.take("c")
    now[0] += VALID_S + 2
    once.take("c")


@pytest.mark.parametrize("value", [None, "", "xyz", "00ff"])
def test_without_a_secret_nothing_starts(value: str | None) -> None:
    environ = {} if value is None else {"VAUBAN_SECRET": value}
    with pytest.raises(ConfigError, match="VAUBAN_SECRET"):
        server_secret(environ)


def test_a_ticket_is_taken_once_by_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton runs several instances of `guard_llm`, each in a process of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    now = [time.time()]
    one, other = (SharedOnce(SECRET, lambda: now[0]) for _ in range(2))
    one.take("a")
    other.take("b")
    for once, ticket in ((one, "a"), (one, "b"), (other, "a")):
        with pytest.raises(MalformedRequest, match="taken already"):
            once.take(ticket)
    SharedOnce(b"another secret of a server").take("a")
    now[0] += VALID_S + 2
    one.take("c")
    (mine,) = (place for place in tmp_path.iterdir() if (place / "c").exists())
    assert {file.name for file in mine.iterdir()} == {"c"}
    mine.chmod(0o755)
    with pytest.raises(ConfigError, match="0700"):
        SharedOnce(SECRET)


def test_tickets_are_taken_again_once_the_machine_cleared_its_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    now = [time.time()]
    once = SharedOnce(SECRET, lambda: now[0])
    for later in (0, VALID_S + 2):
        now[0] += later
        (place,) = tmp_path.iterdir()
        shutil.rmtree(place)
        once.take("a")
        with pytest.raises(MalformedRequest, match="taken already"):
            once.take("a")


def test_a_refused_ticket_is_seen_by_all_processes_and_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    now = [time.time()]
    encoder, llm = (SharedOnce(SECRET, lambda: now[0]) for _ in range(2))
    encoder.refuse("a" * 32)
    assert llm.refused("a" * 32)
    assert not llm.refused("b" * 32)
    now[0] += 2 * VALID_S
    encoder.refuse("c" * 32)
    assert not llm.refused("a" * 32)


def test_where_a_refusal_cannot_be_written_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tickets = SharedOnce(SECRET)
    (place,) = tmp_path.iterdir()
    place.rmdir()
    place.write_text("in the way")
    tickets.refuse("a" * 32)
    assert not tickets.refused("a" * 32)
