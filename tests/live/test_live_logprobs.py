"""The published attack on the output layer, mounted on a real server.

Carlini et al. 2024 (arXiv 2403.06634, section 4): the logits of many prompts form a matrix whose
rank is the hidden dimension, 64 for the stand-in; its singular values fall off a cliff there. The
values of tokens of the attacker's choice come from logit_bias (section 5), or from any other way
to force a token, from log-probabilities of the prompt, or from tokens drawn at a high temperature.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from vauban.protocol.hardening import CONCEALED
from vauban.standin import prose

pytestmark = pytest.mark.vllm

HIDDEN = 64
COLUMNS = ROWS = 76
SHOWN = 5
Matrix = np.ndarray[Any, np.dtype[np.float64]]

FORCED: dict[str, Any] = {
    "logit_bias": lambda token, _: {"logit_bias": {str(token): 100}},
    "allowed_token_ids": lambda token, _: {"allowed_token_ids": [token]},
    "choice": lambda _, text: {"structured_outputs": {"choice": [text]}},
    "regex": lambda _, text: {"structured_outputs": {"regex": text}},
    "logprob_token_ids": lambda token, _: {"logprob_token_ids": [token]},
}


@pytest.fixture(scope="module")
def unhardened(start: Any) -> Iterator[Any]:
    with start(
        "--additional-config.vauban.logprobs.mode", "off",
        "--additional-config.vauban.injection.mode", "off",
        "--additional-config.vauban.extraction.mode", "off",
        max_model_len=1024,
    ) as server:  # fmt: skip
        yield server


def prompts(rows: int) -> list[str]:
    return [f"{prose(4 + n % 5, n)} Part {n}" for n in range(rows)]


def columns() -> list[int]:
    """The tokens whose values the attacker is after."""
    return [int(n) for n in 10 + np.random.default_rng(5).choice(1_000, COLUMNS, replace=False)]


def ask(live: Any, prompt: str | list[str], **fields: Any) -> httpx.Response:
    body = {"model": "standin", "prompt": prompt, "max_tokens": 1, "temperature": 0, **fields}
    response: httpx.Response = live.post("/v1/completions", body)
    return response


def values(response: httpx.Response) -> list[dict[str, float]]:
    """What is told of the first token of each answer: token → log-probability."""
    assert response.status_code == 200, response.text
    choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    return [choice["logprobs"]["top_logprobs"][0] for choice in choices]


def own_values(response: httpx.Response) -> list[float]:
    assert response.status_code == 200, response.text
    choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    return [choice["logprobs"]["token_logprobs"][0] for choice in choices]


def dimension(logits: Matrix) -> int | None:
    """The rank at the widest gap between neighbouring singular values; None without a clear one.

    Rows are brought to mean zero: log-probabilities are logits less a constant per prompt.
    """
    centred = logits - logits.mean(axis=1, keepdims=True)
    sizes = np.linalg.svd(centred, compute_uv=False)[: min(logits.shape) - 2]
    gaps = sizes[:-1] / np.maximum(sizes[1:], 1e-12)
    widest = int(np.argmax(gaps))
    return widest + 1 if gaps[widest] > 5 else None


def completed(known: Matrix, rank: int, rounds: int = 40) -> Matrix:
    """The low-rank matrix that fits the known entries (NaN = unknown), by alternating between
    them and a truncated singular value decomposition."""
    gaps = np.isnan(known)
    rest = np.nanmin(known, axis=1, keepdims=True)
    filled = np.where(gaps, rest, known)
    for _ in range(rounds):
        left, sizes, right = np.linalg.svd(filled, full_matrices=False)
        filled = np.where(gaps, (left[:, :rank] * sizes[:rank]) @ right[:rank], known)
    return filled


# -- without hardening ---------------------------------------------------------------------------


def test_the_attack_finds_the_hidden_dimension(unhardened: Any) -> None:
    asked = prompts(ROWS)
    vectors = [
        own_values(ask(unhardened, asked, logprobs=1, logit_bias={str(token): 100}))
        for token in columns()
    ]
    assert dimension(np.array(vectors).T) == HIDDEN


@pytest.mark.parametrize("way", list(FORCED))
def test_every_way_to_force_a_token_tells_its_value(unhardened: Any, way: str) -> None:
    """So each of them has to be shut, not the bias alone."""
    prompt, token = prompts(1)[0], 301
    text = unhardened.post("/detokenize", {"model": "standin", "tokens": [token]}).json()["prompt"]
    assert text.isalpha()
    by_bias = own_values(ask(unhardened, prompt, logprobs=1, logit_bias={str(token): 100}))[0]
    fields = FORCED[way](token, text)
    told = ask(unhardened, prompt, logprobs=1, **fields)
    assert told.status_code == 200, told.text
    if way == "logprob_token_ids":
        assert values(told)[0][text] == pytest.approx(by_bias, abs=1e-4)
    elif way in ("choice", "regex"):
        assert own_values(told)[0] > by_bias + 2  # among the tokens that the grammar leaves
    else:
        assert own_values(told)[0] == pytest.approx(by_bias, abs=1e-4)


def test_high_temperatures_tell_unlikely_tokens(unhardened: Any) -> None:
    told = values(ask(unhardened, prompts(1)[0], logprobs=1, n=64, temperature=2))
    assert len({token for top in told for token in top}) > 20


# -- with it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", list(FORCED))
def test_no_way_to_force_a_token_comes_with_values(live: Any, way: str) -> None:
    for path, body in [
        ("/v1/completions", {"prompt": "x", "logprobs": 1}),
        ("/invocations", {"prompt": "x", "logprobs": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}],
                                  "logprobs": True}),
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "x"}]],
                                        "logprobs": True}),
        ("/v1/responses", {"input": "x", "include": ["message.output_text.logprobs"]}),
    ]:  # fmt: skip
        fields = {"model": "standin", "max_tokens": 1, **body, **FORCED[way](301, "the")}
        response = live.post(path, fields)
        assert response.status_code == 400, path
        assert response.json()["error"]["code"] == "malformed_request"
    options = {"max_tokens": 1, "logprobs": 1, **FORCED[way](301, "the")}
    response = live.post("/inference/v1/generate", {"token_ids": [5], "sampling_params": options})
    assert response.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_high_temperatures_tell_the_likeliest_only(live: Any, stream: bool) -> None:
    """64 tokens of one position, drawn nearly at random, by an attacker who may ask for 20."""
    fields = {"logprobs": 20, "n": 64, "temperature": 2, "stream": stream}
    response = ask(live, prompts(1)[0], **fields)
    assert response.status_code == 200
    if stream:
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        choices = [
            choice for line in lines for choice in httpx.Response(200, text=line).json()["choices"]
        ]
        told = [choice["logprobs"]["top_logprobs"][0] for choice in choices if choice["logprobs"]]
    else:
        told = values(response)
    assert len(told) == 64
    known = {(token, v) for top in told for token, v in top.items() if v != CONCEALED}
    concealed = {token for top in told for token, v in top.items() if v == CONCEALED}
    assert len(known) <= SHOWN
    assert len(concealed) > 20  # the drawn tokens are there; their values are not


def test_what_is_still_told_does_not_give_the_dimension(live: Any) -> None:
    """The five likeliest for each of many prompts, rounded: the attacker fills in the rest by the
    low rank that he is after, or takes the smallest value told."""
    asked, told = prompts(4 * ROWS), []
    for start in range(0, len(asked), 8):
        response = ask(live, asked[start : start + 8], logprobs=20)
        if response.status_code == 200:  # the encoder may take a prompt for an injection
            told += values(response)
    rows = len(told)
    assert rows > 2 * ROWS
    names = sorted({token for top in told for token in top})
    known = np.full((rows, len(names)), np.nan)
    for row, top in enumerate(told):
        for token, number in top.items():
            known[row, names.index(token)] = number
    assert (np.isfinite(known).sum(axis=1) <= SHOWN).all()
    assert np.array_equal(known, np.round(known, 2), equal_nan=True)
    for guess in (HIDDEN // 2, HIDDEN):
        if guess < min(known.shape) - 3:
            assert dimension(completed(known, guess)) != HIDDEN
    floor = np.where(np.isnan(known), np.nanmin(known, axis=1, keepdims=True), known)
    assert dimension(floor) != HIDDEN


def payloads(response: httpx.Response) -> list[Any]:
    """The body, or the data of each event."""
    assert response.status_code == 200, response.text
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(text) for text in lines or [response.text]]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_and_token_answers_are_trimmed(live: Any, stream: bool) -> None:
    prompt = prompts(1)[0]
    ids = live.post("/tokenize", {"model": "standin", "prompt": prompt}).json()["tokens"]
    sampling = {"max_tokens": 4, "temperature": 2, "n": 4, "ignore_eos": True}
    message = {"role": "user", "content": prompt}
    for path, body in [
        (
            "/v1/chat/completions",
            {"messages": [message], "logprobs": True, "top_logprobs": 20, **sampling},
        ),
        (
            "/inference/v1/generate",
            {"token_ids": ids, "sampling_params": {"logprobs": 20, **sampling}},
        ),
    ]:
        told = payloads(live.post(path, {"model": "standin", "stream": stream, **body}))
        choices = [choice for payload in told for choice in payload["choices"]]
        given = [choice["logprobs"]["content"] for choice in choices if choice.get("logprobs")]
        entries = [entry for content in given for entry in content]
        assert len(entries) == 16
        for entry in entries:
            shown = [one["logprob"] for one in entry["top_logprobs"]]
            assert len(shown) == SHOWN
            assert shown == sorted(shown, reverse=True)
            assert entry["logprob"] == CONCEALED or entry["logprob"] in shown
        assert any(entry["logprob"] == CONCEALED for entry in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_trimmed(live: Any, stream: bool) -> None:
    numbers: list[float] = []
    for prompt in prompts(6):  # an answer of which something was taken out has none
        body = {
            "model": "standin",
            "input": prompt,
            "max_output_tokens": 4,
            "stream": stream,
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 20,
            "temperature": 2,
        }
        response = live.post("/v1/responses", body)
        assert response.status_code == 200, response.text
        parts = response.text.split('"logprob":')[1:]
        numbers += [float(part.partition(",")[0].partition("}")[0]) for part in parts]
    assert numbers
    assert all(n in (CONCEALED, round(n, 2)) for n in numbers)
