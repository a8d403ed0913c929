from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey

from vauban.access.identity import Identity, client_host, is_loopback, require_safe_bind
from vauban.access.keyfile import revoke_key
from vauban.access.keys import key_id_of, mint_key
from vauban.errors import ConfigError, RateLimited, Unauthenticated
from vauban.policy import IdentityPolicy
from vauban.types import Principal, PrincipalKind, RateLimit

EC = ECKey.generate_key("P-256", {"kid": "ec"})


def identity_of(clock, **fields: Any) -> Identity:
    return Identity(IdentityPolicy(**fields), clock=clock, monotonic=clock)


def call(
    identity: Identity,
    *,
    authorization: str | None = None,
    api_key: str | None = None,
    client_host: str | None = "127.0.0.1",
) -> Principal:
    return identity.authenticate(
        authorization=authorization, api_key=api_key, client_host=client_host
    )


def message_of(identity: Identity, **headers: str | None) -> str:
    with pytest.raises(Unauthenticated) as caught:
        call(identity, **headers)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.param is None
    return str(caught.value)


@pytest.fixture
def jwks(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [EC.as_dict(private=False)]}))
    path.chmod(0o644)
    return {"jwks_file": path, "jwt_issuer": "https://id.example", "jwt_audience": "vauban"}


def token(clock, **changes: Any) -> str:
    claims = {
        "iss": "https://id.example",
        "aud": "vauban",
        "sub": "alice",
        "exp": int(clock()) + 600,
        "scope": "chat",
        **changes,
    }
    return jwt.encode({"alg": "ES256", "kid": "ec"}, claims, EC, algorithms=["ES256"])


def test_a_key_in_either_header(add: Callable[..., str], store: Path, clock) -> None:
    text = add("a", "chat")
    identity = identity_of(clock, keys_file=store)
    assert not identity.anonymous_allowed
    for headers in (
        {"authorization": f"Bearer {text}"},
        {"authorization": f"bearer  {text} "},
        {"api_key": text},
        {"authorization": "", "api_key": text},
        {"authorization": f"Bearer {text}", "api_key": text},
    ):
        principal = call(identity, **headers)
        assert principal.id == f"key:{key_id_of(text)}"
        assert principal.kind is PrincipalKind.KEY
        assert principal.scopes == {"chat"}


def test_a_token_in_either_header(jwks: dict[str, Any], clock) -> None:
    identity = identity_of(clock, **jwks)
    text = token(clock)
    assert not identity.anonymous_allowed
    assert call(identity, authorization=f"Bearer {text}") == call(identity, api_key=text)
    assert call(identity, api_key=text).kind is PrincipalKind.JWT


def test_keys_and_tokens_side_by_side(
    add: Callable[..., str], store: Path, jwks: dict[str, Any], clock
) -> None:
    text = add("a")
    identity = identity_of(clock, keys_file=store, **jwks)
    assert call(identity, api_key=text).kind is PrincipalKind.KEY
    assert call(identity, api_key=token(clock)).kind is PrincipalKind.JWT


def test_every_refusal_reads_the_same_and_repeats_nothing(
    add: Callable[..., str],
    store: Path,
    jwks: dict[str, Any],
    clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    good, other = add("a"), add("b")
    ending = add("c", expires_in_s=5)
    identity = identity_of(clock, keys_file=store, **jwks)
    clock.advance(6)
    bad_token = token(clock, aud="other")
    typo = good[:-1] + ("a" if good[-1] != "a" else "b")
    secrets = [good, other, ending, bad_token, mint_key().text, good[:-1] + "!", typo, "hunter2"]
    attempts: list[dict[str, str | None]] = [
        {},
        {"authorization": "", "api_key": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {good}"},
        {"authorization": good},
        {"authorization": f"Bearer {good} {good}"},
        {"authorization": f"Bearer {good}", "api_key": other},
        {"authorization": f"Bearer {good}\n"},
        {"api_key": good[:-1]},
        {"api_key": good + " "},
        {"api_key": good.upper()},
        {"api_key": ending},
        {"api_key": bad_token},
        {"api_key": "a" * 10_000_000},
        {"authorization": "Bearer " + "a" * 10_000_000},
        *({"api_key": text} for text in secrets[4:]),
    ]
    messages = {message_of(identity, **attempt) for attempt in attempts}
    assert len(messages) == 1
    seen = caplog.text + "".join(messages) + repr(identity) + str(vars(identity))
    for text in secrets:
        assert text not in seen
    for key in (good, other, ending):
        assert key.rpartition("_")[2] not in seen
    reasons = {record.getMessage() for record in caplog.records}
    assert {"credential refused: missing", "credential refused: expired"} <= reasons
    assert {"credential refused: ambiguous", "credential refused: mistyped"} <= reasons


def test_a_key_only_server_takes_no_tokens_and_the_other_way_round(
    add: Callable[..., str], store: Path, jwks: dict[str, Any], clock
) -> None:
    text = add("a")
    message_of(identity_of(clock, keys_file=store), api_key=token(clock))
    message_of(identity_of(clock, **jwks), api_key=text)


def test_new_and_revoked_keys_take_effect_without_a_restart(
    add: Callable[..., str], store: Path, clock
) -> None:
    first = add("a")
    identity = identity_of(clock, keys_file=store)
    assert call(identity, api_key=first)
    second = add("b")
    revoke_key(store, "a")
    clock.advance(1)
    message_of(identity, api_key=first)
    assert call(identity, api_key=second)


def test_a_lost_store_refuses_everybody(
    add: Callable[..., str], store: Path, clock, caplog: pytest.LogCaptureFixture
) -> None:
    text = add("a")
    identity = identity_of(clock, keys_file=store)
    store.unlink()
    clock.advance(1)
    message_of(identity, api_key=text)
    message_of(identity)  # and certainly doesn't turn callers into anonymous ones
    assert "all callers are refused" in caplog.text


def test_an_empty_store_refuses_everybody_and_says_so(
    add: Callable[..., str], store: Path, clock, caplog: pytest.LogCaptureFixture
) -> None:
    text = add("a")
    revoke_key(store, "a")
    identity = identity_of(clock, keys_file=store)
    assert not identity.anonymous_allowed
    message_of(identity, api_key=text)
    assert "store is empty" in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {"keys_file": Path("/nonexistent/keys.json")},
        {"jwks_file": Path("/nonexistent/jwks"), "jwt_issuer": "i", "jwt_audience": "a"},
        {"anonymous_scopes": ["chta"]},
    ],
)
def test_bad_settings_stop_the_start(clock, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        identity_of(clock, **fields)


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "expected"),
    [
        ("203.0.113.5", [], ["127.0.0.1"], "203.0.113.5"),
        ("203.0.113.5", ["192.0.2.1"], [], None),
        ("203.0.113.5", ["192.0.2.1"], ["127.0.0.1"], "203.0.113.5"),
        ("10.0.0.9", ["192.0.2.1"], ["10.0.0.0/24"], "192.0.2.1"),
        ("10.0.0.9", ["6.6.6.6, 192.0.2.1"], ["10.0.0.0/24"], "192.0.2.1"),
        ("10.0.0.9", ["6.6.6.6", "192.0.2.1, 10.0.0.8"], ["10.0.0.0/24"], "192.0.2.1"),
        ("10.0.0.9", ["10.0.0.7"], ["10.0.0.0/24"], "10.0.0.9"),
        ("10.0.0.9", ["", "junk"], ["10.0.0.0/24"], "junk"),  # counts as `anon:local`
        (None, ["192.0.2.1"], ["127.0.0.1"], "192.0.2.1"),
        ("::1", ["192.0.2.1"], ["127.0.0.0/8", "::1"], "192.0.2.1"),
        ("10.0.0.5", ["203.0.113.7:4711"], ["10.0.0.5"], "203.0.113.7"),
        ("10.0.0.5", ["[2001:db8::1]:4711"], ["10.0.0.5"], "2001:db8::1"),
    ],
)
def test_whose_word_counts_for_an_address(
    peer: str | None, forwarded: list[str], proxies: list[str], expected: str | None
) -> None:
    assert client_host(peer, forwarded, proxies) == expected


def test_proxies_are_addresses() -> None:
    with pytest.raises(ValueError, match=r"proxy\.example"):
        IdentityPolicy(trusted_proxies=("proxy.example",))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "anon:local"),
        ("127.0.0.2", "anon:local"),
        ("10.1.2.3", "anon:10.1.2.3"),
        ("::1", "anon:local"),
        ("::ffff:10.1.2.3", "anon:10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "anon:2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "anon:2001:db8:1:2::/64"),
        ("fe80::1%eth0", "anon:fe80::/64"),
        ("[2001:db8::1]", "anon:2001:db8::/64"),
        (None, "anon:local"),
        ("", "anon:local"),
        ("testclient", "anon:local"),
        ("x\n" * 1000, "anon:local"),
    ],
)
def test_anonymous_callers_by_address(clock, host: str | None, expected: str) -> None:
    identity = identity_of(clock, requests_per_min=9)
    assert identity.anonymous_allowed
    principal = call(identity, client_host=host, authorization="Bearer EMPTY")
    assert principal.id == expected
    assert principal.kind is PrincipalKind.ANONYMOUS
    assert principal.scopes == {"*"}
    assert principal.limit == RateLimit(9, None)


@given(st.text(max_size=60))
def test_any_client_host_gives_a_short_id_safe_to_log(host: str) -> None:
    identity = Identity(IdentityPolicy())
    name = call(identity, client_host=host).id
    assert name.isascii()
    assert name.isprintable()
    assert len(name) < 64


def test_limits_of_a_key_are_applied(add: Callable[..., str], store: Path, clock) -> None:
    text = add("a", limit=RateLimit(2, 100))
    identity = identity_of(clock, keys_file=store, requests_per_min=1000)
    principal = call(identity, api_key=text)
    identity.admit(principal)
    identity.admit(principal)
    with pytest.raises(RateLimited, match="requests") as caught:
        identity.admit(principal)
    assert caught.value.retry_after_s == 60
    assert key_id_of(text) not in str(caught.value)
    clock.advance(60)
    identity.charge(principal, 100)
    with pytest.raises(RateLimited, match="tokens"):
        identity.admit(principal)


def test_the_default_clocks_are_the_real_ones(add: Callable[..., str], store: Path, clock) -> None:
    clock.now = time.time()
    text = add("a", expires_in_s=3600)
    assert call(Identity(IdentityPolicy(keys_file=store)), api_key=text)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.255.0.9",
        "::1",
        "[::1]",
        "localhost",
        "LOCALHOST",
        "::ffff:127.0.0.1",
        "unix:/run/vauban.sock",
        "/run/vauban.sock",
    ],
)
def test_loopback(host: str, clock) -> None:
    assert is_loopback(host)
    require_safe_bind(identity_of(clock), host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "0.0.0.0",  # noqa: S104 - the subject of the test
        "::",
        "[::]",
        "0",
        "*",
        "10.0.0.1",
        "::ffff:0.0.0.0",
        "::ffff:10.0.0.1",
        "example.org",
        "localhost.example.org",
        "127.0.0.1.example.org",
        "127.1",
        "2130706433",
        "0x7f000001",
        " 127.0.0.1",
        "128.0.0.1",
        "fe80::1",
        "unixhost",
    ],
)
def test_not_loopback(host: str | None, clock, add: Callable[..., str], store: Path) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="vauban keys add"):
        require_safe_bind(identity_of(clock), host)
    add("a")
    require_safe_bind(identity_of(clock, keys_file=store), host)
