"""State in SQLite: in memory, or in a file that several processes of one machine share.

A commit is on the disk before it is answered (WAL, synchronous FULL), so a ban outlives a killed
server and a power cut. Not for network file systems: SQLite's locks don't hold there.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vauban.errors import ConfigError, StateUnavailable
from vauban.policy_standing import MEMORY, SQLITE, StatePolicy
from vauban.state.store import (
    DAY_S,
    MAX_PAGE,
    MAX_RECORD_BYTES,
    Change,
    Changes,
    check_counts,
    check_key,
)

PURGE_EVERY_S: Final = 60.0
_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (epoch TEXT NOT NULL, revision INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS records_by_revision ON records (revision);
CREATE TABLE IF NOT EXISTS counted (key TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counted_by_expiry ON counted (expires);
CREATE TABLE IF NOT EXISTS counts (
    key TEXT NOT NULL, field TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (key, field)
) WITHOUT ROWID;
"""


class SqliteStore:
    """:param clock: seconds since the epoch; counts expire by it."""

    def __init__(self, policy: StatePolicy, clock: Callable[[], float] = time.time) -> None:
        self.shared = policy.store != MEMORY
        self._path = Path("/" + policy.store.removeprefix(SQLITE)) if self.shared else None
        self._timeout_s = policy.timeout_ms / 1000
        self._retention_s = policy.retention_days * DAY_S
        self._max_counted = policy.max_users
        self._clock = clock
        self._lock = threading.Lock()
        self._purge_at = 0.0
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        if self._connection is not None:
            return
        name = ":memory:"
        try:
            if self._path is not None:
                name = str(self._path)
                # Before SQLite makes it: its log and index get the permissions of the file.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(
                name, self._timeout_s, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"state.store: {self._path} can't be opened: {error}") from None
        try:
            self._prepare(connection)
        except sqlite3.OperationalError as error:  # held by another process, or no room
            connection.close()
            raise StateUnavailable(f"{self._path}: {error}") from None
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ConfigError(f"state.store: {self._path} is not a store: {error}") from None
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _FORMAT):
            raise sqlite3.DatabaseError(f"format {found}, not {_FORMAT}")
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
        if connection.execute("SELECT count(*) FROM meta").fetchone()[0] == 0:
            connection.execute("INSERT INTO meta VALUES (?, 0)", (secrets.token_hex(8),))
        connection.execute(f"PRAGMA user_version={_FORMAT}")
        connection.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def update(self, key: str, change: Change) -> None:
        check_key(key)
        with self._transaction("IMMEDIATE") as connection:
            row = connection.execute("SELECT value FROM records WHERE key = ?", (key,)).fetchone()
            old = None if row is None else bytes(row[0])
            new = change(old)
            if new == old:
                return
            if new is None:
                connection.execute("DELETE FROM records WHERE key = ?", (key,))
                return
            if len(new) > MAX_RECORD_BYTES:
                raise ValueError(f"a record has at most {MAX_RECORD_BYTES} bytes")
            connection.execute("UPDATE meta SET revision = revision + 1")
            connection.execute(
                "INSERT OR REPLACE INTO records SELECT ?, revision, ? FROM meta", (key, new)
            )

    def changes(self, since: int) -> Changes:
        with self._transaction("DEFERRED") as connection:
            epoch, revision = connection.execute("SELECT epoch, revision FROM meta").fetchone()
            if revision < since:  # an older copy of the file was put in its place
                epoch = secrets.token_hex(8)
                connection.execute("UPDATE meta SET epoch = ?", (epoch,))
            rows = connection.execute(
                "SELECT key, value, revision FROM records WHERE revision > ?"
                " ORDER BY revision LIMIT ?",
                (since, MAX_PAGE),
            ).fetchall()
        last = rows[-1][2] if rows else since
        return Changes(epoch, last, tuple((key, bytes(value)) for key, value, _ in rows))

    def add_counts(
        self, batch: Sequence[tuple[str, Mapping[str, float]]]
    ) -> list[dict[str, float]]:
        check_counts(batch)
        now = self._clock()
        with self._transaction("IMMEDIATE") as connection:
            self._purge(connection, now)
            connection.executemany(
                "INSERT OR REPLACE INTO counted VALUES (?, ?)",
                [(key, now + self._retention_s) for key, _ in batch],
            )
            connection.executemany(
                "INSERT INTO counts VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET value = value + excluded.value",
                [(key, name, n) for key, fields in batch for name, n in fields.items()],
            )
            return [
                dict(connection.execute("SELECT field, value FROM counts WHERE key = ?", (key,)))
                for key, _ in batch
            ]

    def drop_counts(self, keys: Iterable[str]) -> None:
        with self._transaction("IMMEDIATE") as connection:
            for key in keys:
                connection.execute("DELETE FROM counts WHERE key = ?", (key,))
                connection.execute("DELETE FROM counted WHERE key = ?", (key,))

    def _purge(self, connection: sqlite3.Connection, now: float) -> None:
        """Forget what has expired, and what was added to the longest ago beyond the bound."""
        if now < self._purge_at:
            return
        self._purge_at = now + PURGE_EVERY_S
        connection.execute("DELETE FROM counted WHERE expires <= ?", (now,))
        connection.execute(
            "DELETE FROM counted WHERE key IN"
            " (SELECT key FROM counted ORDER BY expires DESC LIMIT -1 OFFSET ?)",
            (self._max_counted,),
        )
        connection.execute("DELETE FROM counts WHERE key NOT IN (SELECT key FROM counted)")

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction; nothing of it is kept if it raises."""
        with self._lock:
            connection = self._connection
            if connection is None:
                raise StateUnavailable("the store is not open")
            try:
                connection.execute(f"BEGIN {kind}")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise StateUnavailable(f"SQLite: {error}") from None
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
