"""Tensors and parameters of a client: everything that it may get wrong is said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import MalformedRequest, RequestTooLarge
from vauban.hosts.triton.requests import Asked, read_parameters, read_request
from vauban.protocol.shapes import Shape

MAX_BYTES = 10_000


def text(value: str | bytes, *, shape: tuple[int, ...] = (1,)) -> Any:
    array = np.empty(1, object)
    array[0] = value.encode() if isinstance(value, str) else value
    return array.reshape(shape)


def flag(value: bool) -> Any:
    return np.array([value])


def read(**values: Any) -> Asked:
    return read_request(values, MAX_BYTES)


def test_a_text_is_a_completion() -> None:
    asked = read(text_input=text("hello"))
    assert asked.data == {"prompt": "hello", "sampling_params": {}}
    assert (asked.shape, asked.stream) == (Shape.COMPLETION, False)


def test_messages_are_a_chat() -> None:
    messages = [{"role": "user", "content": "hello"}]
    asked = read(messages=text(json.dumps(messages)), stream=flag(True))
    assert (asked.data["messages"], asked.shape) == (messages, Shape.CHAT)
    assert asked.stream


@pytest.mark.parametrize(
    ("values", "repeat"),
    [
        ({}, "hello"),
        ({"exclude_input_in_output": flag(True)}, None),
        ({"exclude_input_in_output": flag(False)}, "hello"),
        ({"stream": flag(True)}, None),
    ],
)
def test_the_input_is_repeated_as_the_vllm_backend_does(
    values: dict[str, Any], repeat: str | None
) -> None:
    assert read(text_input=text("hello"), **values).repeat == repeat


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"text_input": text("a"), "messages": text("[]")},
        {"text_input": np.empty(0, object)},
        {"text_input": np.array([b"a", b"b"], object)},
        {"text_input": text(b"\xff\xfe")},
        {"text_input": np.array([1.5])},
        {"messages": text("[]")},
        {"messages": text("{}")},
        {"messages": text("[1]")},
        {"messages": text("[" * 100_000)},
        {"messages": text("not json")},
        {"text_input": text("a"), "stream": np.array([1])},
        {"text_input": text("a"), "stream": np.array([True, False])},
        {"text_input": text("a"), "return_logprobs": flag(True)},
        {"text_input": text("a"), "return_cumulative_logprob": flag(True)},
        {"text_input": text("a"), "sampling_parameters": text("[]")},
        {"text_input": text("a"), "sampling_parameters": text('{"a":')},
        {"text_input": text("a"), "sampling_parameters": text('{"extra_args": 3}')},
        {"text_input": text("a"), "sampling_parameters": text('{"n": "64"}')},
        {"text_input": text("a"), "sampling_parameters": text('{"n": 64.0}')},
        {"text_input": text("a"), "sampling_parameters": text('{"n": true}')},
        {"text_input": text("a"), "sampling_parameters": text('{"max_tokens": "64"}')},
        {"text_input": text("a"), "sampling_parameters": text('{"stop": [1]}')},
        {"text_input": text("a"), "sampling_parameters": text('{"stop_token_ids": ["1"]}')},
        {"text_input": text("a"), "sampling_parameters": text('{"bad_words": "a"}')},
        {"text_input": text("a"), "sampling_parameters": text('{"logit_bias": {"a": 1}}')},
        {"text_input": text("a"), "sampling_parameters": text('{"logit_bias": {"1": []}}')},
        {"text_input": text("a"), "stream": flag(True), "exclude_input_in_output": flag(False)},
        {"text_input": text("a"), "stream": flag(True), "sampling_parameters": text('{"n": 2}')},
        {"messages": text('[{"role":"user"}]'), "exclude_input_in_output": flag(False)},
    ],
)
def test_what_is_not_a_request_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises((MalformedRequest, RequestTooLarge)):
        read(**values)


def test_sampling_parameters_go_on_as_they_came() -> None:
    sent = {
        "n": 2, "max_tokens": None, "stop": ["a", "b"], "stop_token_ids": [1], "bad_words": [],
        "logit_bias": {"5": 1}, "temperature": "0.5", "min_p": 0,
    }  # fmt: skip
    assert read(text_input=text("a"), sampling_parameters=text(json.dumps(sent))).sampling == sent


def test_a_sampling_parameter_of_the_wrong_type_is_named() -> None:
    with pytest.raises(MalformedRequest, match=r"^stop_token_ids: ") as caught:
        read(text_input=text("a"), sampling_parameters=text('{"stop_token_ids": ["secret"]}'))
    assert "secret" not in str(caught.value)


def test_what_is_not_told_may_be_declined() -> None:
    declined = {"return_logprobs": flag(False), "return_cumulative_logprob": flag(False)}
    assert read(text_input=text("hello"), **declined) == read(text_input=text("hello"))


def test_a_request_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestTooLarge):
        read(text_input=text("a" * (MAX_BYTES + 1)))


def test_the_guards_own_key_is_taken_from_what_a_client_sends() -> None:
    sent = {"extra_args": {"vauban": "forged", "mine": 1}, "max_tokens": 3}
    asked = read(text_input=text("a"), sampling_parameters=text(json.dumps(sent)))
    assert asked.sampling == {"extra_args": {"mine": 1}, "max_tokens": 3}


def test_names_of_parameters_are_compared_in_lower_case() -> None:
    assert read_parameters('{"X-Api-Key": "k", "n": 3}') == {"x-api-key": "k", "n": "3"}
    assert read_parameters("") == read_parameters(None) == {}


@pytest.mark.parametrize(
    "raw", ['{"authorization": "a", "Authorization": "b"}', '{"x": 1, "x": 2}']
)
def test_a_parameter_beside_a_header_that_says_otherwise_is_refused(raw: str) -> None:
    with pytest.raises(MalformedRequest):
        read_parameters(raw)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_bytes_raise_anything_else(first: bytes, second: bytes) -> None:
    for values in ({"messages": text(first)}, {"text_input": text(first)}):
        try:
            read(**values, sampling_parameters=text(second))
        except (MalformedRequest, RequestTooLarge):
            continue
