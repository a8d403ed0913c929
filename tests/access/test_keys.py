from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.keys import (
    CHECKSUM_CHARS,
    KEY_CHARS,
    PREFIX,
    KeyTable,
    _checksum,
    key_digest,
    key_id_of,
    mint_key,
    parse_key_file,
)
from vauban.access.refusal import CredentialRefused, Refusal
from vauban.errors import ConfigError
from vauban.types import RateLimit

NO_LIMIT = RateLimit()


def reason_of(check: Callable[[], object]) -> Refusal:
    with pytest.raises(CredentialRefused) as caught:
        check()
    return caught.value.reason


def table_of(store: Path, limit: RateLimit = NO_LIMIT) -> KeyTable:
    return KeyTable(parse_key_file(store.read_bytes()).keys, limit)


def with_other_secret(text: str) -> str:
    """The same id, another secret, and a checksum that is right for it."""
    body = text[:-CHECKSUM_CHARS]
    body = body[:-1] + ("a" if body[-1] != "a" else "b")
    return body + _checksum(body)


def test_minted_keys_have_the_documented_form_and_differ() -> None:
    keys = [mint_key() for _ in range(50)]
    assert len({key.text for key in keys}) == len({key.id for key in keys}) == 50
    for key in keys:
        assert len(key.text) == KEY_CHARS
        assert key.text.startswith(f"{PREFIX}{key.id}_")
        assert key_id_of(key.text) == key.id
        assert key.text not in repr(key)


@given(st.text(max_size=80))
def test_any_other_text_is_refused(text: str) -> None:
    assert reason_of(lambda: key_id_of(text)) in (Refusal.MALFORMED, Refusal.MISTYPED)


@given(st.integers(0, KEY_CHARS - 1), st.characters())
def test_every_single_typing_error_is_noticed(position: int, char: str) -> None:
    text = mint_key().text
    wrong = text[:position] + char + text[position + 1 :]
    if wrong != text:
        assert reason_of(lambda: key_id_of(wrong)) in (Refusal.MALFORMED, Refusal.MISTYPED)


@given(st.integers(0, KEY_CHARS - 1))
def test_cut_keys_are_refused(length: int) -> None:
    text = mint_key().text[:length]
    assert reason_of(lambda: key_id_of(text)) is Refusal.MALFORMED


@pytest.mark.parametrize("around", ["{} ", " {}", "{}\n", "{}\x00", "{}{}", "{}é"])
def test_nothing_may_stand_around_a_key(around: str) -> None:
    text = mint_key().text
    assert reason_of(lambda: key_id_of(around.format(text, text))) is Refusal.MALFORMED


def test_a_stored_key_is_accepted(add: Callable[..., str], store: Path) -> None:
    text = add("a", "chat", limit=RateLimit(tokens_per_min=7))
    principal = table_of(store, RateLimit(3, 4)).verify(text, 0.0)
    assert principal.id == f"key:{key_id_of(text)}"
    assert principal.scopes == {"chat"}
    assert principal.limit == RateLimit(3, 7)  # the key's own ceiling wins, the policy's fills in


def test_the_store_has_the_hash_and_not_the_key(add: Callable[..., str], store: Path) -> None:
    text = add("a")
    content = store.read_text()
    secret = text.split("_")[2]
    assert secret not in content
    assert secret[:-CHECKSUM_CHARS] not in content
    assert key_digest(text).hex() in content


def test_unknown_and_wrong_keys_are_told_apart_for_the_log(
    add: Callable[..., str], store: Path
) -> None:
    text = add("a")
    table = table_of(store)
    assert reason_of(lambda: table.verify(mint_key().text, 0.0)) is Refusal.UNKNOWN_KEY
    assert reason_of(lambda: table.verify(with_other_secret(text), 0.0)) is Refusal.WRONG_SECRET


def test_a_key_ends_at_its_expiry(add: Callable[..., str], store: Path, clock) -> None:
    text = add("a", expires_in_s=60)
    table = table_of(store)
    assert table.verify(text, clock.now + 59.9)
    assert reason_of(lambda: table.verify(text, clock.now + 60)) is Refusal.EXPIRED


def test_compare_digest_decides(
    add: Callable[..., str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not `==`: with the comparison replaced, its answer is the table's answer."""
    text = add("a")
    table = table_of(store)
    compared: list[tuple[bytes, bytes]] = []

    def answer(value: bool) -> Callable[[bytes, bytes], bool]:
        def compare(left: bytes, right: bytes) -> bool:
            compared.append((left, right))
            return value

        return compare

    monkeypatch.setattr(hmac, "compare_digest", answer(False))
    assert reason_of(lambda: table.verify(text, 0.0)) is Refusal.WRONG_SECRET
    monkeypatch.setattr(hmac, "compare_digest", answer(True))
    assert table.verify(with_other_secret(text), 0.0)
    # An unknown id is compared too (same work), and stays unknown whatever comes out.
    assert reason_of(lambda: table.verify(mint_key().text, 0.0)) is Refusal.UNKNOWN_KEY
    assert len(compared) == 3
    assert all(len(left) == len(right) == 32 for left, right in compared)


def record(**changes: object) -> dict[str, object]:
    return {
        "id": "0123456789ab",
        "name": "a",
        "sha256": "0" * 64,
        "scopes": ["chat"],
        "created": "2026-01-01T00:00:00Z",
        "expires": None,
        **changes,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"version": 2, "keys": []}).encode(),
        json.dumps({"keys": [], "more": 1}).encode(),
        json.dumps({"keys": [record(), record(name="b")]}).encode(),
        json.dumps({"keys": [record(), record(id="0123456789ac")]}).encode(),
        json.dumps({"keys": [record(sha256="0" * 63)]}).encode(),
        json.dumps({"keys": [record(id="0123456789AB")]}).encode(),
        json.dumps({"keys": [record(id="0123456789ab\n")]}).encode(),
        json.dumps({"keys": [record(name="a b")]}).encode(),
        json.dumps({"keys": [record(scopes=["modle:small"])]}).encode(),
        json.dumps({"keys": [record(expires="2027-01-01T00:00:00")]}).encode(),  # no time zone
        json.dumps({"keys": [record(requests_per_min=0)]}).encode(),
    ],
)
def test_a_store_that_is_not_right_in_every_field_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_key_file(content)


def test_errors_of_the_store_do_not_repeat_its_values() -> None:
    digest = "f" * 63 + "X"
    content = json.dumps({"keys": [record(sha256=digest)]}).encode()
    with pytest.raises(ConfigError) as caught:
        parse_key_file(content)
    assert digest not in str(caught.value)
    assert "sha256" in str(caught.value)


def test_service_and_group_reach_the_principal(add: Callable[..., str], store: Path) -> None:
    """Set on a store as another version may have written it."""
    text = add("a")
    data = json.loads(store.read_bytes())
    data["keys"][0] |= {"service": True, "group": "acme/eu"}
    principal = KeyTable(parse_key_file(json.dumps(data).encode()).keys, NO_LIMIT).verify(text, 0.0)
    assert (principal.service, principal.group) == (True, "acme/eu")


def test_a_store_without_services_is_written_as_before(
    add: Callable[..., str], store: Path
) -> None:
    """So that a server of an earlier version still reads it."""
    text = add("a")
    (row,) = json.loads(store.read_bytes())["keys"]
    assert not {"service", "group"} & set(row)
    principal = table_of(store).verify(text, 0.0)
    assert (principal.service, principal.group) == (False, "")
