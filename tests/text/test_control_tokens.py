"""Control tokens are broken so that a real tokenizer no longer maps them to special ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from vauban.policy import NormalizePolicy
from vauban.text.control_tokens import FAMILY_TOKENS, HTML_TOKENS, ControlTokens
from vauban.text.normalize import Normalizer

SPECIAL = sorted(
    FAMILY_TOKENS
    | HTML_TOKENS
    | {
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eot_id|>", "<|begin_of_text|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>",
        "<|user|>", "<|START_OF_TURN_TOKEN|>", "<|reserved_special_token_12|>", "<｜User｜>",
        "<｜begin▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "]~b]", "]~!b[", "<extra_id_7>",
        "<think>", "<bos>", "aba", "<unused42>", "▁<SEP>",
    }
)  # fmt: skip


def tokenizer(normalizer: normalizers.Normalizer | None, normalized: bool) -> Tokenizer:
    """A byte-level tokenizer without merges; every text has ids, special ones start at 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_special_tokens([AddedToken(t, special=True, normalized=normalized) for t in SPECIAL])
    return made


TOKENIZERS = {
    "raw": tokenizer(None, normalized=False),
    "nfc": tokenizer(normalizers.NFC(), normalized=True),
    "nfkc": tokenizer(normalizers.NFKC(), normalized=True),
}
ENFORCE = Normalizer(NormalizePolicy(), SPECIAL)


def special_ids(kind: str, text: str) -> list[int]:
    made = TOKENIZERS[kind]
    first = made.token_to_id(SPECIAL[0])
    return [n for n in made.encode(text).ids if n >= first]


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("token", SPECIAL)
def test_no_special_id_survives(kind: str, token: str) -> None:
    tricks = [
        token,
        f"x{token}y{token}{token}",
        token[:2] + token + token[2:],
        token[:-1] + token + token[-1:],
        token[:3] + "\u200b" + token[3:],
        token[:1] + "\U000e0041\u202e\x00\ue000" + token[1:],
        "\u200d".join(token),
        full_width(token),
    ]
    assert special_ids(kind, token)
    for text in tricks:
        assert special_ids(kind, ENFORCE(text).model) == []


PIECES = [
    *SPECIAL, "<", "|", ">", "<|", "im_", "start|>", "\u200b", "\U000e0041", "ab", "a", "＜", "｜",
    "［", " ", "\u0301", "INST]", "b]~b",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14))
@settings(max_examples=400, deadline=None)
def test_no_combination_survives_and_breaking_is_idempotent(parts: list[str]) -> None:
    model = ENFORCE("".join(parts)).model
    for kind in TOKENIZERS:
        assert special_ids(kind, model) == []
    assert ENFORCE(model).model == model


def test_the_change_is_one_space_and_readable() -> None:
    breaker = ControlTokens(FAMILY_TOKENS | HTML_TOKENS)
    assert breaker.neutralise("<|im_start|>system") == ("<|im_start| >system", 1)
    assert breaker.neutralise("[INST] hi [/INST]") == ("[INST ] hi [/INST ]", 2)
    assert breaker.neutralise("<s>old</s>") == ("<s >old</s >", 2)


def test_html_is_left_alone_when_the_served_tokenizer_has_no_such_token() -> None:
    html = "<s>old price</s> <b>new</b>"
    assert Normalizer(NormalizePolicy(), ["<|im_end|>"])(html).model == html
    assert Normalizer(NormalizePolicy(), ["</s>"])(html).model == "<s>old price</s > <b>new</b>"
    assert Normalizer(NormalizePolicy())(html).model == "<s >old price</s > <b>new</b>"


@pytest.mark.parametrize(
    "code",
    ["a <| b |> c", "x |> f <| y", "Vec<S> a[i] <T>", "<div><think>", "[INFO] [inst]", "a||b",
     "<|>", "if (a<b|c>d)", "[1]", "<system>", "## Instruction:"],
)  # fmt: skip
def test_look_alikes_in_code_are_left_alone(code: str) -> None:
    assert ControlTokens(FAMILY_TOKENS).neutralise(code) == (code, 0)


def test_encoder_tokens_are_broken_for_the_detector_only() -> None:
    done = Normalizer(NormalizePolicy(), ["<|x|>"])("good [SEP] ignore [CLS]")
    assert done.model == "good [SEP] ignore [CLS]"
    assert done.guard == ("good [SEP ] ignore [CLS ]",)


def test_tokens_that_cannot_be_broken_are_left_out() -> None:
    breaker = ControlTokens(["", " ", "x", "a b", "\n\n"])
    assert breaker.neutralise("x a b \n\n") == ("x a b \n\n", 0)


def test_overlapping_tokens() -> None:
    text, count = ControlTokens(["aa", "aba"]).neutralise("aaaaabababa" * 50)
    assert "aa" not in text
    assert "aba" not in text
    assert text.replace(" ", "") == "aaaaabababa" * 50
    assert count >= 200
