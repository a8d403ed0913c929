"""A mark that is not exactly ours is no mark."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.windows import Windows
from vauban.mark import NONCE_BYTES, Mark, Order, Sealer, new_nonce

SEALER = Sealer(b"k" * 32)
ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)
windows = st.lists(st.lists(ids, max_size=3), max_size=3).map(
    lambda models: Windows(tuple(tuple(np.array(w, np.int32) for w in m) for m in models))
)
marks = st.builds(
    Mark,
    st.sampled_from(Order),
    st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES),
    st.text(max_size=20).filter(lambda t: t.isprintable()),
    windows,
)


def plain(mark: Mark) -> object:
    per_model = [[w.tolist() for w in model] for model in mark.windows.per_model]
    return mark.order, mark.nonce, mark.reply, per_model


@given(mark=marks)
def test_round_trip(mark: Mark) -> None:
    opened = SEALER.open_mark(SEALER.seal_mark(mark))
    assert opened is not None
    assert plain(opened) == plain(mark)


@pytest.fixture(scope="module")
def sealed() -> bytes:
    some = Windows(((np.arange(9, dtype=np.int32),),))
    return base64.b64decode(SEALER.seal_mark(Mark(Order.PASS, b"n" * 16, "front.sock", some)))


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_every_flipped_bit_is_refused(sealed: bytes) -> None:
    assert SEALER.open_mark(text(sealed)) is not None
    for place in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[place // 8] ^= 1 << place % 8
        assert SEALER.open_mark(text(bytes(flipped))) is None


def test_every_truncation_and_extension_is_refused(sealed: bytes) -> None:
    for length in range(len(sealed)):
        assert SEALER.open_mark(text(sealed[:length])) is None
        assert SEALER.open_mark(text(sealed[length + 1 :])) is None
    assert SEALER.open_mark(text(sealed + b"\0")) is None
    assert SEALER.open_mark(text(b"\0" + sealed)) is None


@settings(max_examples=200)
@given(forged=st.text() | st.binary().map(text) | st.integers() | st.none() | st.lists(st.text()))
def test_forgeries_are_refused(forged: object) -> None:
    assert SEALER.open_mark(forged) is None


def test_another_servers_mark_is_refused() -> None:
    mark = Mark(Order.PASS, new_nonce(), "", Windows(()))
    assert SEALER.open_mark(Sealer(b"j" * 32).seal_mark(mark)) is None


def test_a_seal_is_for_one_purpose(sealed: bytes) -> None:
    data = sealed[:-32]
    assert SEALER.open(b"mark", SEALER.seal(b"mark", data)) == data
    assert SEALER.open(b"verdict", SEALER.seal(b"mark", data)) is None
    assert SEALER.open(b"mar", SEALER.seal(b"mark", data)) is None
    assert SEALER.open_mark(text(SEALER.seal(b"verdict", data))) is None
    # The border between purpose and data is sealed as well.
    assert SEALER.open(b"a", SEALER.seal(b"a\0b", b"c")) is None


def test_nonces_differ() -> None:
    assert len({new_nonce() for _ in range(1000)}) == 1000


def test_the_secret_is_long_enough_and_not_shown() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Sealer(b"short")
    assert "k" * 4 not in repr(SEALER)
