"""State in a Valkey or Redis server (any that speaks RESP and runs Lua; 5.0 and later).

Records stand in one hash, with a sorted set of when each was last written. They have no time to
live, so a server whose `maxmemory-policy` is `noeviction` or one of `volatile-*` never drops a
ban; with `allkeys-*` it may, and a warning says so. Whether they outlive a restart of the Valkey
server is that server's configuration (`appendonly yes`); an API server that is still running
writes back what it knows.

Covers: TLS with the host's name checked, users and passwords. Does not cover: clusters, since the
names of one deployment lie in several slots.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import urlsplit

import valkey
from valkey.backoff import NoBackoff
from valkey.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    ValkeyError,
)
from valkey.retry import Retry

from vauban.errors import ConfigError, StateUnavailable
from vauban.policy_standing import StatePolicy
from vauban.state.store import (
    DAY_S,
    MAX_PAGE,
    MAX_RECORD_BYTES,
    Change,
    Changes,
    check_counts,
    check_key,
)

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 50
_SAFE_EVICTION: Final = ("noeviction", "volatile-")
_TLS: Final = ("rediss", "valkeys")
_REFUSED: Final = (AuthenticationError, AuthenticationWrongNumberOfArgsError)

# KEYS: records, revisions, revision. ARGV: name, the value it must have now, the new one; an
# empty text stands for no record. Gives 1, or the value that another writer put there.
_SWAP: Final = """
local now = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if now ~= ARGV[2] then return {0, now} end
if ARGV[3] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
end
return {1, ''}
"""
# KEYS: records, revisions, revision, epoch. ARGV: since, how many, a new epoch: for a server that
# is empty, or that came back with an older copy of its data.
_CHANGES: Final = """
if tonumber(redis.call('GET', KEYS[3]) or 0) < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[4], ARGV[3])
else
    redis.call('SET', KEYS[4], ARGV[3], 'NX')
end
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES',
                         'LIMIT', 0, ARGV[2])
local last, rows = ARGV[1], {}
for i = 1, #found, 2 do
    local value = redis.call('HGET', KEYS[1], found[i])
    if value then
        rows[#rows + 1] = found[i]
        rows[#rows + 1] = value
    end
    last = found[i + 1]
end
return {redis.call('GET', KEYS[4]), last, rows}
"""


class ValkeyStore:
    """:param password: of the user in the URL, or of the default user."""

    shared = True

    def __init__(self, policy: StatePolicy, password: str | None) -> None:
        prefix = policy.prefix
        self._records, self._revisions = f"{prefix}:standings", f"{prefix}:revisions"
        self._revision, self._epoch = f"{prefix}:revision", f"{prefix}:epoch"
        self._counts = f"{prefix}:counts:"
        self._retention_s = policy.retention_days * DAY_S
        timeout_s = policy.timeout_ms / 1000
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            # An addition that was sent twice would count twice.
            "retry": Retry(NoBackoff(), 0),
        }
        if password is not None:
            options["password"] = password
        if urlsplit(policy.store).scheme in _TLS:
            options["ssl_check_hostname"] = True
        try:
            self._client = valkey.Valkey.from_url(policy.store, **options)
        except ValueError as error:
            raise ConfigError(f"state.store: {error}") from None
        self._swap = self._client.register_script(_SWAP)
        self._changes = self._client.register_script(_CHANGES)

    def open(self) -> None:
        """:raises ConfigError: the server refuses this user or password."""
        try:
            with _answered():
                self._client.ping()
        except StateUnavailable as error:
            if isinstance(error.__cause__, _REFUSED):
                raise ConfigError(
                    "state.store: the Valkey server refuses this user or password"
                ) from None
            raise
        with suppress(ValkeyError):  # not every user may ask this
            info: Any = self._client.info("memory")
            kept = str(info.get("maxmemory_policy", "noeviction"))
            if not kept.startswith(_SAFE_EVICTION):
                logger.warning(
                    "the Valkey server's maxmemory-policy is %s: when its memory is full it may"
                    " drop bans; set it to noeviction or volatile-lru",
                    kept,
                )

    def close(self) -> None:
        self._client.connection_pool.disconnect()

    def update(self, key: str, change: Change) -> None:
        check_key(key)
        with _answered():
            found: Any = self._client.hget(self._records, key)
            for _ in range(_ATTEMPTS):
                old = found or None
                new = change(old)
                if new == old:
                    return
                if new is not None and not 0 < len(new) <= MAX_RECORD_BYTES:
                    raise ValueError(f"a record has 1 to {MAX_RECORD_BYTES} bytes")
                keys = [self._records, self._revisions, self._revision]
                done, found = self._swap(keys=keys, args=[key, old or b"", new or b""])
                if done:
                    return
        raise StateUnavailable("too many writers change one record")

    def changes(self, since: int) -> Changes:
        keys = [self._records, self._revisions, self._revision, self._epoch]
        with _answered():
            epoch, last, rows = self._changes(
                keys=keys, args=[since, MAX_PAGE, secrets.token_hex(8)]
            )
        pairs = zip(rows[::2], rows[1::2], strict=True)
        return Changes(
            epoch.decode(),
            int(float(last)),
            tuple((key.decode("utf-8", "replace"), value) for key, value in pairs),
        )

    def add_counts(
        self, batch: Sequence[tuple[str, Mapping[str, float]]]
    ) -> list[dict[str, float]]:
        check_counts(batch)
        with _answered(), self._client.pipeline(transaction=True) as pipeline:
            for key, fields in batch:
                name = self._counts + key
                for field, number in fields.items():
                    pipeline.hincrbyfloat(name, field, number)
                pipeline.expire(name, self._retention_s)
            for key, _ in batch:
                pipeline.hgetall(self._counts + key)
            answers: list[Any] = pipeline.execute()  # type: ignore[no-untyped-call]
        totals: list[dict[bytes, bytes]] = answers[len(answers) - len(batch) :]
        return [{name.decode(): float(n) for name, n in found.items()} for found in totals]

    def drop_counts(self, keys: Iterable[str]) -> None:
        names = [self._counts + key for key in keys]
        if names:
            with _answered():
                self._client.delete(*names)


@contextmanager
def _answered() -> Iterator[None]:
    """Whatever goes wrong between us and the server: there was no answer."""
    try:
        yield
    except (ValkeyError, OSError) as error:
        raise StateUnavailable(f"Valkey: {type(error).__name__}") from error
