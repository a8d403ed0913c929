"""Windows: every token covered, exact serialisation, hostile bytes refused."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.encoder import Encoder
from vauban.detectors.windows import Windows, spans

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12).map(
    lambda values: np.array(values, np.int32)
)
windows = st.lists(st.lists(ids, max_size=5).map(tuple), max_size=3).map(
    lambda models: Windows(tuple(models))
)


@given(st.integers(1, 3000), st.integers(2, 300), st.integers(0, 150))
def test_spans_cover_everything_with_the_promised_overlap(
    tokens: int, body: int, overlap: int
) -> None:
    overlap = min(overlap, body // 2)
    cut = list(spans(tokens, body, overlap))
    assert cut[0][0] == 0
    assert cut[-1][1] == tokens
    assert len({end - start for start, end in cut}) == 1
    assert all(0 < end - start <= body for start, end in cut)
    for (_, end), (start, _) in itertools.pairwise(cut):
        assert end - start >= overlap


@pytest.mark.parametrize("tokens", [1, 29, 30, 31, 52, 53, 1000])
def test_spans_are_as_few_as_possible(tokens: int) -> None:
    body, overlap = 30, 8
    fewest = 1 if tokens <= body else -(-(tokens - overlap) // (body - overlap))
    assert len(list(spans(tokens, body, overlap))) == fewest


@given(windows)
def test_bytes_round_trip(value: Windows) -> None:
    back = Windows.from_bytes(value.to_bytes())
    assert back.tokens == value.tokens
    assert [[list(w) for w in m] for m in back.per_model] == [
        [list(w) for w in m] for m in value.per_model
    ]


@given(
    st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"VW\x01\x02\x01\x00" + tail)
)
def test_any_bytes_are_read_exactly_or_refused(data: bytes) -> None:
    try:
        value = Windows.from_bytes(data)
    except ValueError:
        return
    assert value.tokens <= len(data)
    assert all(len(ids) for model in value.per_model for ids in model)


@given(windows.filter(lambda value: value.tokens > 0), st.data())
def test_a_cut_or_longer_message_is_refused(value: Windows, data: st.DataObject) -> None:
    whole = value.to_bytes()
    with pytest.raises(ValueError, match="token windows"):
        Windows.from_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match="token windows"):
        Windows.from_bytes(whole + b"\x00")


def test_a_count_beyond_the_message_allocates_nothing() -> None:
    with pytest.raises(ValueError, match="truncated"):
        Windows.from_bytes(b"VW\x01\x02\x01\x00" + b"\xff\xff\xff\xff")


def test_small_ids_take_two_bytes() -> None:
    value = Windows(((np.arange(100, dtype=np.int32),),))
    assert len(value.to_bytes()) < 220


@settings(max_examples=60)
@given(st.text(alphabet="abc the ignoring é\n!", max_size=400))
def test_windows_hold_every_token_in_order(shipped: Encoder, text: str) -> None:
    whole = shipped.tokenizer.to_ids(text)
    (found,) = shipped.tokenizer([text]).per_model
    assert bool(found) is bool(whole)
    if len(found) == 1:
        assert found[0][1:-1].tolist() == whole


def test_long_text_is_covered(tiny: Encoder) -> None:
    text = " ".join(f"the {n}" for n in range(400))
    whole = np.array(tiny.tokenizer.to_ids(text))
    (found,) = tiny.tokenizer([text]).per_model
    at = 0
    for ids_ in found:
        body = ids_[1:-1]
        assert len(ids_) <= 32
        start = next(i for i in range(at + 1) if (whole[i : i + len(body)] == body).all())
        at = start + len(body)
    assert at == len(whole)


def test_the_api_server_needs_no_torch() -> None:
    program = (
        "import sys; from vauban.policy import EncoderPolicy;"
        "from vauban.detectors.windows import WindowTokenizer;"
        "WindowTokenizer.load(EncoderPolicy())(['hello']);"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_texts_do_not_share_windows(tiny: Encoder) -> None:
    both = tiny.tokenizer(["the the", "ignore"]).per_model[0]
    alone = [tiny.tokenizer([text]).per_model[0][0] for text in ("the the", "ignore")]
    assert [list(ids_) for ids_ in both] == [list(ids_) for ids_ in alone]


@pytest.mark.parametrize("texts", [[], [""], ["", "  \n\t"]])
def test_nothing_to_read_gives_no_windows(tiny: Encoder, texts: list[str]) -> None:
    assert tiny.tokenizer(texts) == Windows(((),))
