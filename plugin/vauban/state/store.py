"""What every store of state can do, and which one a policy asks for.

A store keeps two things. *Records*: one value for each name, changed by one writer at a time
however many processes there are, and readable as "what has changed since". *Counts*: named
numbers that are only ever added to, so that what several servers count about one user adds up;
they are forgotten some time after the last addition. Records never are.

Calls block for at most the policy's timeout and may come from any thread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vauban.errors import ConfigError
from vauban.policy_standing import MEMORY, PASSWORD_VARIABLE, SQLITE, StatePolicy

MAX_PAGE: Final = 1_000
MAX_RECORD_BYTES: Final = 65_536
MAX_KEY_CHARS: Final = 256
MAX_FIELDS_PER_CALL: Final = 65_536
MAX_PASSWORD_CHARS: Final = 4_096
DAY_S: Final = 86_400

Change = Callable[[bytes | None], bytes | None]


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed after a revision: at most `MAX_PAGE` records, oldest first.

    `revision` is where the next call goes on. `epoch` names the data: another one means that the
    store has lost what it had, and that revisions started again.
    """

    epoch: str
    revision: int
    records: tuple[tuple[str, bytes], ...]


class Store(Protocol):
    """Every method raises `StateUnavailable` when there is no answer in time."""

    shared: bool
    """False: it lives and ends with this process, and can't be lost apart from it."""

    def open(self) -> None:
        """Connect; idempotent.

        :raises ConfigError: it will never work: no such directory, wrong password, not a store.
        """

    def close(self) -> None: ...

    def update(self, key: str, change: Change) -> None:
        """Change one record, atomically.

        :param change: gets the value or None, gives the new one or None to delete it. Without
            side effects: it is called again when another writer was faster.
        """

    def changes(self, since: int) -> Changes:
        """Records written after revision `since`, 0 = all. Deletions are not told."""

    def add_counts(
        self, batch: Sequence[tuple[str, Mapping[str, float]]]
    ) -> list[dict[str, float]]:
        """Add to the counts of many keys in one round trip; gives all counts of each, after.

        :raises ValueError: a number is not finite, or a name is too long.
        """

    def drop_counts(self, keys: Iterable[str]) -> None:
        """Forget all counts of these keys."""


def open_store(policy: StatePolicy) -> Store:
    """The store that the policy names, not yet connected.

    :raises ConfigError: a client library or the password file is missing.
    """
    if policy.store == MEMORY or policy.store.startswith(SQLITE):
        from vauban.state.sqlite import SqliteStore

        return SqliteStore(policy)
    try:
        from vauban.state.valkey import ValkeyStore
    except ModuleNotFoundError:
        raise ConfigError(
            f"state.store: no client for {policy.store.partition(':')[0]}://;"
            " pip install 'vauban[valkey]'"
        ) from None
    return ValkeyStore(policy, read_password(policy))


def require_shared(
    policy: StatePolicy, *, api_servers: int = 1, engines: int = 1, instances: int = 1
) -> None:
    """Refuse state that each of several processes would keep for itself.

    :param instances: of Triton's model that keeps it.
    :raises ConfigError: with what to do about it.
    """
    counts = {"API servers": api_servers, "engines": engines, "instances of the model": instances}
    what = next((f"{count} {name}" for name, count in counts.items() if count > 1), None)
    if policy.store != MEMORY or what is None:
        return
    raise ConfigError(
        f"state.store is {MEMORY}, but there are {what}: each would know only a part of what a user"
        " does, and a ban on one would not hold on another. Set state.store to"
        f" {SQLITE}PATH or to a Valkey server (redis://HOST:PORT), or response.mode to off."
    )


def read_password(policy: StatePolicy) -> str | None:
    """:raises ConfigError: the file can't be read, or is empty."""
    path = policy.password_file
    if path is None:
        return os.environ.get(PASSWORD_VARIABLE) or None
    try:
        with path.open(encoding="utf-8") as file:
            password = file.read(MAX_PASSWORD_CHARS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"state.password_file can't be read: {type(error).__name__}") from None
    if not password:
        raise ConfigError("state.password_file is empty")
    return password


def check_counts(batch: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """:raises ValueError: what every store refuses alike."""
    if sum(len(fields) for _, fields in batch) > MAX_FIELDS_PER_CALL:
        raise ValueError(f"more than {MAX_FIELDS_PER_CALL} counts in one call")
    for key, fields in batch:
        for name in (key, *fields):
            check_key(name)
        if not all(math.isfinite(number) for number in fields.values()):
            raise ValueError("a count is not a finite number")


def check_key(key: str) -> None:
    """:raises ValueError: empty, too long, or no text that can be encoded."""
    if not 0 < len(key) <= MAX_KEY_CHARS or "\0" in key:
        raise ValueError(f"a name has 1 to {MAX_KEY_CHARS} characters")
    key.encode()  # UnicodeEncodeError is a ValueError
