"""The stand-in model is the same wherever it is made."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vauban.standin import MAX_MODEL_LEN, VOCABULARY, make_standin, prose


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_standin(tmp_path_factory.mktemp("standin"))


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_made_twice_gives_the_same_bytes(model, tmp_path):
    torch.manual_seed(7)  # the caller's own random state must not matter
    assert contents(make_standin(tmp_path / "again")) == contents(model)


def test_making_it_leaves_the_callers_random_state_alone(tmp_path):
    before = torch.random.get_rng_state()
    make_standin(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_made_only_once_in_a_directory(model):
    before = {path: path.stat().st_mtime_ns for path in model.iterdir()}
    make_standin(model)
    assert {path: path.stat().st_mtime_ns for path in model.iterdir()} == before


@pytest.mark.parametrize("stamp", ["", "another version"])
def test_an_unfinished_or_older_one_is_made_again(tmp_path, model, stamp):
    (tmp_path / "model.safetensors").write_bytes(b"half")
    if stamp:
        (tmp_path / "standin.sha256").write_text(stamp)
    assert contents(make_standin(tmp_path)) == contents(model)


def test_transformers_loads_it_and_it_can_say_something(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.inference_mode():
        logits = network(ids).logits
    assert logits.shape == (1, ids.shape[1], VOCABULARY)
    assert torch.isfinite(logits).all()
    assert network.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["naïve café", "日本語 🙂", "a\u200bb\u0000", "x" * 500])
def test_the_tokenizer_keeps_every_byte(model, text):
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_document_of_six_thousand_words_fits(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert len(tokenizer.encode(prose(6_000, seed=1))) < MAX_MODEL_LEN * 0.9


@pytest.mark.parametrize("words", [1, 10, 6_000])
def test_prose_has_the_words_asked_for_and_repeats_itself(words):
    text = prose(words, seed=3)
    assert words <= len(text.split()) < words + 20
    assert text == prose(words, seed=3)
    assert words < 10 or text != prose(words, seed=4)
