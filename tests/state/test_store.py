"""Store = store: whatever one of them does, the others do the same."""

from __future__ import annotations

import itertools
import math
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from redis_server import RedisServer
from vauban.errors import ConfigError, StateUnavailable
from vauban.policy_standing import PASSWORD_VARIABLE, StatePolicy
from vauban.state import store as stores
from vauban.state.sqlite import PURGE_EVERY_S, SqliteStore
from vauban.state.store import MAX_PAGE, MAX_RECORD_BYTES, Store, open_store, require_shared

KEYS = st.sampled_from(["key:a", "anon:::1/64", "a b\n*", "ключ", "k" * 256])
VALUES = st.binary(min_size=1, max_size=20)
FIELDS = st.sampled_from(["0", "n", "sum/1", "ü"])
NUMBERS = st.integers(-1000, 1000).map(float) | st.sampled_from([0.5, -0.25, 1e6, 1e-3])


@pytest.fixture
def store(state_policy: Callable[..., StatePolicy]) -> Iterator[Store]:
    made = open_store(state_policy())
    made.open()
    yield made
    made.close()


def put(store: Store, key: str, value: bytes | None) -> None:
    store.update(key, lambda _: value)


def everything(store: Store) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    since = 0
    while True:
        changes = store.changes(since)
        found |= dict(changes.records)
        if len(changes.records) < MAX_PAGE:
            return found
        since = changes.revision


class Machine(RuleBasedStateMachine):
    """A store beside a dictionary."""

    make: Callable[[], Store]

    @initialize()
    def begin(self) -> None:
        self.store = self.make()
        self.store.open()
        self.records: dict[str, bytes] = {}
        self.written: list[str] = []
        self.counts: dict[str, dict[str, float]] = {}
        self.seen = 0
        self.epoch = self.store.changes(0).epoch

    def teardown(self) -> None:
        self.store.close()

    @rule(key=KEYS, value=VALUES)
    def append(self, key: str, value: bytes) -> None:
        old = self.records.get(key)
        new = ((old or b"") + value)[-40:]
        got: list[bytes | None] = []

        def change(found: bytes | None) -> bytes | None:
            got.append(found)
            return new

        self.store.update(key, change)
        assert got == [old]
        self.records[key] = new
        if new != old:
            self.written = [k for k in self.written if k != key] + [key]

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        put(self.store, key, None)
        self.records.pop(key, None)
        self.written = [k for k in self.written if k != key]

    @rule(key=KEYS)
    def leave(self, key: str) -> None:
        before = self.store.changes(0)
        self.store.update(key, lambda found: found)
        assert self.store.changes(0) == before

    @rule(key=KEYS)
    def fail(self, key: str) -> None:
        def change(_: bytes | None) -> bytes | None:
            raise KeyError

        with pytest.raises(KeyError):
            self.store.update(key, change)

    @rule()
    def follow(self) -> None:
        """What has changed since last time, in the order it was written."""
        changes = self.store.changes(self.seen)
        assert changes.epoch == self.epoch
        names = [key for key, _ in changes.records]
        assert names == [key for key in self.written if key in names]
        assert dict(changes.records).items() <= self.records.items()
        self.seen = changes.revision
        assert self.store.changes(self.seen).records == ()

    @rule(batch=st.lists(st.tuples(KEYS, st.dictionaries(FIELDS, NUMBERS)), max_size=4))
    def add(self, batch: list[tuple[str, dict[str, float]]]) -> None:
        totals = self.store.add_counts(batch)
        for key, fields in batch:
            kept = self.counts.setdefault(key, {})
            for name, number in fields.items():
                kept[name] = kept.get(name, 0.0) + number
        assert len(totals) == len(batch)
        for (key, _), total in zip(batch, totals, strict=True):
            assert total == pytest.approx(self.counts[key], abs=1e-6)

    @rule(keys=st.lists(KEYS, max_size=3))
    def drop(self, keys: list[str]) -> None:
        self.store.drop_counts(keys)
        for key in keys:
            self.counts.pop(key, None)

    @invariant()
    def holds_what_was_put(self) -> None:
        assert everything(self.store) == self.records


def test_a_store_is_a_dictionary_with_a_history(
    state_policy: Callable[..., StatePolicy], tmp_path: Path
) -> None:
    base = state_policy()
    number = itertools.count()

    def make() -> Store:
        n = next(number)
        url = f"sqlite://{tmp_path}/{n}.db" if base.store.startswith("sqlite") else base.store
        return open_store(base.model_copy(update={"store": url, "prefix": f"{base.prefix}{n}"}))

    machine = type("Made", (Machine,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=25))


def test_many_changes_come_in_pages(store: Store) -> None:
    names = [f"key:{n:05}" for n in range(MAX_PAGE + 7)]
    for name in names:
        put(store, name, name.encode())
    first = store.changes(0)
    assert [key for key, _ in first.records] == names[:MAX_PAGE]
    assert [key for key, _ in store.changes(first.revision).records] == names[MAX_PAGE:]


@pytest.mark.parametrize("wrong", ["", "k" * 257, "a\0b", "\ud800"])
def test_names_that_no_store_takes(store: Store, wrong: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - every store's own words
        put(store, wrong, b"x")
    with pytest.raises(ValueError):  # noqa: PT011
        store.add_counts([(wrong, {"a": 1.0})])
    with pytest.raises(ValueError):  # noqa: PT011
        store.add_counts([("a", {wrong: 1.0})])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_counts_are_finite(store: Store, number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        store.add_counts([("a", {"ok": 1.0}), ("b", {"x": number})])
    assert store.add_counts([("a", {})]) == [{}]


def test_records_have_a_size(store: Store) -> None:
    put(store, "a", b"x" * MAX_RECORD_BYTES)
    with pytest.raises(ValueError, match="bytes"):
        put(store, "a", b"x" * (MAX_RECORD_BYTES + 1))
    assert len(everything(store)["a"]) == MAX_RECORD_BYTES


def test_writers_in_many_threads_lose_nothing(store: Store) -> None:
    def write(n: int) -> None:
        store.update("one", lambda old: (old or b"") + b"x")
        store.add_counts([("one", {"n": 1.0}), (f"u{n % 3}", {"n": 2.0})])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    assert everything(store)["one"] == b"x" * 80
    assert store.add_counts([("one", {})]) == [{"n": 80.0}]


_WRITER = """
import sys
from vauban.policy_standing import StatePolicy
from vauban.state.store import open_store
store = open_store(StatePolicy(store=sys.argv[1], prefix=sys.argv[2], timeout_ms=60000))
store.open()
for _ in range(50):
    store.update("one", lambda old: (old or b"") + b"x")
    store.add_counts([("one", {"n": 1.0})])
"""


def test_writers_in_many_processes_lose_nothing(shared_policy: Callable[..., StatePolicy]) -> None:
    policy = shared_policy(timeout_ms=60_000)
    arguments = [sys.executable, "-c", _WRITER, policy.store, policy.prefix]
    running = [subprocess.Popen(arguments) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    store = open_store(policy)
    store.open()
    assert everything(store) == {"one": b"x" * 150}
    assert store.add_counts([("one", {})]) == [{"n": 150.0}]
    store.close()


def test_what_was_kept_is_there_when_it_is_opened_again(
    shared_policy: Callable[..., StatePolicy],
) -> None:
    policy = shared_policy()
    first, second = open_store(policy), open_store(policy)
    first.open()
    put(first, "a", b"1")
    first.add_counts([("a", {"n": 1.5})])
    first.close()
    second.open()
    assert everything(second) == {"a": b"1"}
    assert second.add_counts([("a", {})]) == [{"n": 1.5}]
    second.close()


def test_deployments_with_other_prefixes_see_nothing_of_each_other(
    redis_server: RedisServer,
) -> None:
    one, other = (
        open_store(StatePolicy(store=redis_server.url, prefix=secrets.token_hex(4)))
        for _ in range(2)
    )
    put(one, "a", b"1")
    one.add_counts([("a", {"n": 1})])
    assert everything(other) == {}
    assert other.add_counts([("a", {})]) == [{}]


# -- retention --------------------------------------------------------------------------------


def test_counts_expire_in_sqlite() -> None:
    now = [1000.0]
    store = SqliteStore(StatePolicy(retention_days=1), clock=lambda: now[0])
    store.open()
    store.add_counts([("old", {"n": 1.0})])
    now[0] += 86_000
    store.add_counts([("young", {"n": 1.0})])
    now[0] += 500
    assert store.add_counts([("old", {"n": 1.0}), ("young", {})]) == [{"n": 1.0}, {"n": 1.0}]
    store.close()


def test_counts_in_sqlite_are_bounded() -> None:
    now = [1000.0]
    store = SqliteStore(StatePolicy(max_users=10), clock=lambda: now[0])
    store.open()
    for n in range(50):
        now[0] += 1
        store.add_counts([(f"u{n}", {"n": 1.0})])
    now[0] += PURGE_EVERY_S
    store.add_counts([("u49", {"n": 1.0})])
    assert [store.add_counts([(f"u{n}", {})]) for n in (39, 40)] == [[{}], [{"n": 1.0}]]
    store.close()


def test_counts_expire_in_valkey_and_records_never(redis_server: RedisServer) -> None:
    policy = StatePolicy(store=redis_server.url, prefix=secrets.token_hex(4), retention_days=2)
    store = open_store(policy)
    put(store, "a", b"1")
    store.changes(0)
    store.add_counts([("a", {"n": 1.0})])
    client = redis_server.client()
    names = {name.decode() for name in client.keys(f"{policy.prefix}:*")}
    lasting = {name for name in names if client.ttl(name) == -1}
    assert names - lasting == {f"{policy.prefix}:counts:a"}
    assert 172_700 < client.ttl(f"{policy.prefix}:counts:a") <= 172_800
    assert lasting


# -- when it goes wrong -----------------------------------------------------------------------


def test_a_dead_server_is_an_answer(own_redis_server: RedisServer) -> None:
    store = open_store(StatePolicy(store=own_redis_server.url, timeout_ms=200))
    store.open()
    put(store, "a", b"1")
    epoch = store.changes(0).epoch
    own_redis_server.kill()
    calls: list[Callable[[], Any]] = [
        lambda: put(store, "a", b"2"),
        lambda: store.changes(0),
        lambda: store.add_counts([("a", {"n": 1.0})]),
        lambda: store.drop_counts(["a"]),
        store.open,
    ]
    for call in calls:
        with pytest.raises(StateUnavailable):
            call()
    own_redis_server.start()
    assert everything(store) == {"a": b"1"}
    assert store.changes(0).epoch == epoch
    store.close()


def test_a_silent_server_is_an_answer(own_redis_server: RedisServer) -> None:
    store = open_store(StatePolicy(store=own_redis_server.url, timeout_ms=100))
    store.open()
    own_redis_server.freeze()
    with pytest.raises(StateUnavailable):
        store.changes(0)
    own_redis_server.thaw()
    assert store.changes(0).records == ()
    store.close()


def test_lost_data_are_another_epoch(own_redis_server: RedisServer) -> None:
    store = open_store(StatePolicy(store=own_redis_server.url))
    store.open()
    put(store, "a", b"1")
    before = store.changes(0)
    own_redis_server.client().flushall()
    assert store.changes(before.revision).epoch != before.epoch
    store.close()


def test_an_older_copy_is_another_epoch(state_policy: Callable[..., StatePolicy]) -> None:
    store = open_store(state_policy())
    store.open()
    put(store, "a", b"1")
    now = store.changes(0)
    ahead = store.changes(now.revision + 5)  # what a server asks that has seen more
    assert ahead.epoch != now.epoch
    assert store.changes(0).epoch == ahead.epoch
    store.close()


def test_a_wrong_password_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = RedisServer(password="right horse")
    try:
        policy = StatePolicy(store=server.url)
        with pytest.raises(ConfigError, match="password"):
            open_store(policy).open()
        monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
        with pytest.raises(ConfigError) as caught:
            open_store(policy).open()
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv(PASSWORD_VARIABLE, "right horse")
        store = open_store(policy)
        store.open()
        put(store, "a", b"1")
        file = tmp_path / "password"
        file.write_text("right horse\n")
        monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
        second = open_store(StatePolicy(store=server.url, password_file=file))
        second.open()
        assert everything(second) == {"a": b"1"}
    finally:
        server.remove()


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_password_file_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="password_file"):
        open_store(StatePolicy(store="redis://localhost", password_file=path))


def test_a_missing_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vauban.state.valkey", None)
    with pytest.raises(ConfigError, match=r"pip install 'vauban\[valkey\]'"):
        open_store(StatePolicy(store="valkey://localhost"))


def test_a_file_is_for_its_owner_only(tmp_path: Path) -> None:
    store = open_store(StatePolicy(store=f"sqlite://{tmp_path}/state.db"))
    store.open()
    put(store, "a", b"1")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    store.close()


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"something else " * 100)
    with pytest.raises(ConfigError, match="not a store"):
        open_store(StatePolicy(store=f"sqlite://{tmp_path}/state.db")).open()
    with pytest.raises(ConfigError, match="can't be opened"):
        open_store(StatePolicy(store=f"sqlite://{tmp_path}/none/state.db")).open()


def test_a_store_of_another_format_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "state.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=7")
    with pytest.raises(ConfigError, match="format 7"):
        open_store(StatePolicy(store=f"sqlite://{path}")).open()


def test_a_file_that_another_process_holds(tmp_path: Path) -> None:
    import sqlite3

    url = f"sqlite://{tmp_path}/state.db"
    store = open_store(StatePolicy(store=url, timeout_ms=50))
    store.open()
    with sqlite3.connect(tmp_path / "state.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable):
            put(store, "a", b"1")
        with pytest.raises(StateUnavailable):
            open_store(StatePolicy(store=url, timeout_ms=50)).open()
        other.execute("ROLLBACK")
    put(store, "a", b"1")
    store.close()


def test_a_closed_store_answers_like_a_lost_one() -> None:
    store = open_store(StatePolicy())
    with pytest.raises(StateUnavailable):
        store.changes(0)
    store.open()
    store.close()
    with pytest.raises(StateUnavailable):
        put(store, "a", b"1")


# -- which one --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "servers", "engines", "words"),
    [
        (StatePolicy(), 2, 1, "2 API servers"),
        (StatePolicy(), 1, 4, "4 engines"),
        (StatePolicy(store="sqlite:///tmp/x.db"), 2, 2, None),
        (StatePolicy(store="redis://localhost"), 2, 2, None),
        (StatePolicy(), 1, 1, None),
        (StatePolicy(), 0, 0, None),
    ],
)
def test_state_in_one_process_is_refused_for_several(
    policy: StatePolicy, servers: int, engines: int, words: str | None
) -> None:
    if words is None:
        require_shared(policy, api_servers=servers, engines=engines)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        require_shared(policy, api_servers=servers, engines=engines)
    assert "state.store" in str(caught.value)


def test_a_warning_where_bans_may_be_evicted(caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer()
    try:
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        open_store(StatePolicy(store=server.url)).open()
        assert "allkeys-lru" in caplog.text
    finally:
        server.remove()


def test_bounds_of_one_call(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_FIELDS_PER_CALL", 3)
    with pytest.raises(ValueError, match="more than 3"):
        store.add_counts([("a", {"1": 1, "2": 1}), ("b", {"1": 1, "2": 1})])


def certificate(path: Path, name: str) -> None:
    """A self-signed certificate for a host name, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_tls_checks_who_the_server_is(tmp_path: Path, scheme: str) -> None:
    certificate(tmp_path, "localhost")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = RedisServer(
        "--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file",
        str(tmp_path / "key.pem"), "--tls-auth-clients", "no",
    )  # fmt: skip
    try:
        trusted = f"?ssl_ca_certs={tmp_path}/cert.pem"
        store = open_store(StatePolicy(store=f"{scheme}://localhost:{port}/0{trusted}"))
        store.open()
        put(store, "a", b"1")
        assert everything(store) == {"a": b"1"}
        store.close()
        for wrong in (f"localhost:{port}", f"127.0.0.1:{port}/0{trusted}"):
            with pytest.raises(StateUnavailable):
                open_store(StatePolicy(store=f"{scheme}://{wrong}")).open()
    finally:
        server.remove()


def test_a_name_that_is_no_text_stops_nobody(redis_server: RedisServer) -> None:
    policy = StatePolicy(store=redis_server.url, prefix=secrets.token_hex(4))
    store = open_store(policy)
    put(store, "a", b"1")
    client = redis_server.client()
    client.hset(f"{policy.prefix}:standings", b"\xff", b"1")
    client.zadd(f"{policy.prefix}:revisions", {b"\xff": 7})
    assert dict(store.changes(0).records)["a"] == b"1"
