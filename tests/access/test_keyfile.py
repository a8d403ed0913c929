from __future__ import annotations

import fcntl
import multiprocessing
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vauban.access import keyfile
from vauban.access.keyfile import add_key, declare_key, read_key_file, revoke_key
from vauban.access.keys import key_id_of
from vauban.errors import ConfigError
from vauban.types import RateLimit

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _add_many(path: Path, worker: int, count: int) -> None:
    for number in range(count):
        add_key(path, f"w{worker}-{number}", ["*"], created=NOW, expires=None, limit=RateLimit())


def test_two_processes_adding_at_once_lose_nothing(store: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(store, w, 25)) for w in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    names = {key.name for key in read_key_file(store).keys}
    assert names == {f"w{w}-{n}" for w in range(2) for n in range(25)}


def test_store_and_lock_are_private(add: Callable[..., str], store: Path) -> None:
    previous = os.umask(0)
    try:
        add("a")
    finally:
        os.umask(previous)
    assert mode_of(store) == 0o600
    assert mode_of(store.with_name("keys.json.lock")) == 0o600


def test_read_permissions_given_by_the_operator_stay(add: Callable[..., str], store: Path) -> None:
    add("a")
    store.chmod(0o640)
    add("b")
    assert mode_of(store) == 0o640


def test_only_store_and_lock_are_left_behind(add: Callable[..., str], store: Path) -> None:
    add("a")
    add("b")
    with pytest.raises(ConfigError):
        add("a")
    assert sorted(path.name for path in store.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_failing_replace_leaves_the_old_store(
    add: Callable[..., str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("a")
    before = store.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConfigError, match="No space left"):
        add("b")
    assert store.read_bytes() == before
    assert sorted(path.name for path in store.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_link_stays_a_link(add: Callable[..., str], store: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.json"
    real.parent.mkdir()
    store.symlink_to(real)
    add("a")
    assert store.is_symlink()
    assert [key.name for key in read_key_file(real).keys] == ["a"]


def test_names_are_unique_and_free_again_after_revoking(
    add: Callable[..., str], store: Path
) -> None:
    first = add("a")
    with pytest.raises(ConfigError, match="exists"):
        add("a")
    assert revoke_key(store, "a").id == key_id_of(first)
    assert key_id_of(add("a")) != key_id_of(first)


def test_revoking_by_id(add: Callable[..., str], store: Path) -> None:
    text = add("a")
    add("b")
    revoke_key(store, key_id_of(text))
    assert [key.name for key in read_key_file(store).keys] == ["b"]


def test_a_name_that_is_another_keys_id_revokes_nothing(
    add: Callable[..., str], store: Path
) -> None:
    shared = key_id_of(add("a"))
    add(shared)
    with pytest.raises(ConfigError, match="another's id"):
        revoke_key(store, shared)
    assert len(read_key_file(store).keys) == 2


def test_declaring_changes_nothing_else(add: Callable[..., str], store: Path) -> None:
    text = add("a")
    add("b")
    before = read_key_file(store).keys
    for name, service in (("a", True), (key_id_of(text), True), ("a", False)):
        assert declare_key(store, name, service=service).service is service
        first, second = read_key_file(store).keys
        assert first == before[0].model_copy(update={"service": service})
        assert second == before[1]
    with pytest.raises(ConfigError, match="no key"):
        declare_key(store, "c", service=True)
    assert read_key_file(store).keys == before


def test_revoking_nobody_does_not_repeat_what_was_typed(
    add: Callable[..., str], store: Path
) -> None:
    text = add("a")
    with pytest.raises(ConfigError) as caught:
        revoke_key(store, text)
    assert text not in str(caught.value)


def test_revoking_in_no_store_makes_none(store: Path) -> None:
    with pytest.raises(ConfigError):
        revoke_key(store, "a")
    assert not store.exists()


@pytest.mark.parametrize(
    ("name", "scopes", "expires"),
    [
        ("", ["*"], None),
        ("a b", ["*"], None),
        ("-a", ["*"], None),
        ("a\n", ["*"], None),
        ("a" * 65, ["*"], None),
        ("a", ["chta"], None),
        ("a", ["prompt:system"], None),
        ("a", ["model:x"], None),
        ("a", [], None),
        ("a", ["*"], NOW),
    ],
)
def test_bad_values_are_refused_before_the_store_is_touched(
    store: Path, name: str, scopes: list[str], expires: datetime | None
) -> None:
    with pytest.raises(ConfigError):
        add_key(store, name, scopes, created=NOW, expires=expires, limit=RateLimit())
    assert list(store.parent.iterdir()) == []


@pytest.mark.parametrize("limit", [RateLimit(0, None), RateLimit(None, -1), RateLimit(10**7, None)])
def test_ceilings_have_bounds(store: Path, limit: RateLimit) -> None:
    with pytest.raises(ConfigError, match="per_min"):
        add_key(store, "a", ["*"], created=NOW, expires=None, limit=limit)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_store_others_can_write_is_not_used_or_extended(
    add: Callable[..., str], store: Path, mode: int
) -> None:
    add("a")
    before = store.read_bytes()
    store.chmod(mode)
    with pytest.raises(ConfigError, match="chmod"):
        read_key_file(store)
    with pytest.raises(ConfigError, match="chmod"):
        add("b")
    assert store.read_bytes() == before


def test_a_damaged_store_is_not_overwritten(add: Callable[..., str], store: Path) -> None:
    store.write_text("{half")
    with pytest.raises(ConfigError, match=r"keys\.json: not a key store"):
        add("a")
    assert store.read_text() == "{half"


def test_a_lock_that_is_held_is_an_error_and_not_a_hang(
    add: Callable[..., str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "LOCK_TIMEOUT_S", 0.05)
    with store.with_name("keys.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="held by another process"):
            add("a")
    add("a")


def test_a_link_planted_as_lock_is_not_followed(
    add: Callable[..., str], store: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    store.with_name("keys.json.lock").symlink_to(victim)
    with pytest.raises(ConfigError):
        add("a")
    assert not victim.exists()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be written"):
        add_key(
            tmp_path / "no" / "keys.json", "a", ["*"], created=NOW, expires=None, limit=RateLimit()
        )
