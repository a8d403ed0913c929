"""No request gets more of the logits than the likeliest few, on any route and in any shape."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import MalformedRequest
from vauban.policy import LogprobsPolicy
from vauban.protocol.hardening import CONCEALED, Hardening, LogprobEditor
from vauban.protocol.shapes import Shape

INCLUDE = {"include": ["message.output_text.logprobs"]}
ASKING: dict[Shape, dict[str, Any]] = {
    Shape.CHAT: {"logprobs": True, "top_logprobs": 3},
    Shape.COMPLETION: {"logprobs": 3},
    Shape.RESPONSES: {**INCLUDE, "top_logprobs": 3},
    Shape.TOKENS: {"sampling_params": {"logprobs": 3}},
}
shapes = pytest.mark.parametrize("shape", list(ASKING))


def hardening(max_logprobs: int = -1, **fields: Any) -> Hardening:
    return Hardening(LogprobsPolicy(**fields), max_logprobs)


def asking(shape: Shape, **fields: Any) -> dict[str, Any]:
    """A body that asks for log-probabilities, with more sampling options."""
    data = copy.deepcopy(ASKING[shape])
    (data["sampling_params"] if shape is Shape.TOKENS else data).update(fields)
    return data


def options(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data.get("sampling_params", data)
    return found


@shapes
def test_the_engine_is_asked_for_one_more_than_is_shown(shape: Shape) -> None:
    data = asking(shape)
    assert hardening().request(data, shape) is not None
    name = "top_logprobs" if shape in (Shape.CHAT, Shape.RESPONSES) else "logprobs"
    assert options(data)[name] == 6
    data = asking(shape)
    hardening(max_logprobs=3).request(data, shape)
    assert options(data)[name] == 3


@shapes
@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {"5": 1}}, {"allowed_token_ids": [5]}, {"bad_words": ["a"]},
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"stop_token_ids": [5], "min_tokens": 1},
        {"logprob_token_ids": [1, 2]}, {"prompt_logprobs": 0}, {"prompt_logprobs": -1},
        {"prompt_logprob_token_ids": [[1]]}, {"return_token_ids": True},
        {"return_tokens_as_token_ids": True},
    ],
    ids=lambda fields: "+".join(fields),
)  # fmt: skip
def test_what_gives_the_logits_away_is_refused(shape: Shape, fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest) as caught:
        hardening().request(asking(shape, **fields), shape)
    assert caught.value.param in fields


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (Shape.CHAT, {"response_format": {"type": "json_object"}}),
        (Shape.COMPLETION, {"response_format": {"type": "json_schema"}}),
        (Shape.RESPONSES, {"text": {"format": {"type": "json_schema"}}}),
        (Shape.CHAT, {"tools": [{}], "tool_choice": "required"}),
        (Shape.CHAT, {"tools": [{}]}),
        (Shape.RESPONSES, {"tools": [{}], "tool_choice": {"type": "function", "name": "f"}}),
        (Shape.COMPLETION, {"echo": True}),
    ],
)
def test_a_grammar_forces_tokens_too(shape: Shape, fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest):
        hardening().request(asking(shape, **fields), shape)
    alone = {} if shape is Shape.RESPONSES else {"logprobs": None}
    alone |= {"include": [], "top_logprobs": None}
    assert hardening().request({**fields, **alone}, shape) is None or fields.get("echo")


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}}, {"tools": [{}], "tool_choice": "none"},
        {"stop_token_ids": [5]}, {"min_tokens": 3}, {"logit_bias": {}}, {"bad_words": []},
        {"temperature": 1.7, "top_p": 0.9, "min_p": 0.1, "n": 3, "seed": 5},
    ],
)  # fmt: skip
def test_what_gives_nothing_away_is_served(fields: dict[str, Any]) -> None:
    assert hardening().request(asking(Shape.CHAT, **fields), Shape.CHAT) is not None


@shapes
@pytest.mark.parametrize("value", [5.0, "5", True, -2, [5], {"a": 1}, float("inf")])
def test_a_number_that_only_vllm_takes_for_one(shape: Shape, value: Any) -> None:
    data = asking(shape)
    options(data)["logprobs" if "logprobs" in options(data) else "top_logprobs"] = value
    if shape is Shape.CHAT and value is True:
        return
    with pytest.raises(MalformedRequest):
        hardening().request(data, shape)


def test_echoed_prompts_of_a_chat_lose_their_values() -> None:
    editor = hardening().request({"echo": True}, Shape.CHAT)
    assert editor is not None
    body = {"choices": [{"logprobs": None}], "prompt_logprobs": [None, {"5": {"logprob": -1.0}}]}
    assert editor.body(body)
    assert body["prompt_logprobs"] is None


@pytest.mark.parametrize("shape", list(Shape))
def test_without_logprobs_nothing_happens(shape: Shape) -> None:
    data: dict[str, Any] = {"logit_bias": {"5": 1}, "tools": [{}]}
    before = copy.deepcopy(data)
    assert hardening().request(data, shape) is None
    data.pop("sampling_params", None)
    assert data == before


def test_bias_can_be_refused_altogether() -> None:
    for fields in ({"logit_bias": {"5": 1}}, {"allowed_token_ids": [1]}):
        with pytest.raises(MalformedRequest):
            hardening(bias="refuse").request(dict(fields), Shape.CHAT)
        with pytest.raises(MalformedRequest):
            hardening(bias="refuse").request({"sampling_params": dict(fields)}, Shape.TOKENS)


def test_off_is_off() -> None:
    data = {"logprobs": True, "top_logprobs": 20, "logit_bias": {"5": 1}, "prompt_logprobs": 3}
    before = dict(data)
    assert hardening(mode="off").request(data, Shape.CHAT) is None
    assert data == before
    assert hardening(mode="off").stored() is None


# -- degraded ------------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_degraded_caller_gets_no_values(shape: Shape, mode: str) -> None:
    sharp = {"top_k": 1, "top_p": 0.1, "min_p": 1, "seed": 5, "repetition_penalty": 0.001}
    data = asking(shape, temperature=0, **sharp)
    assert hardening(mode=mode).request(data, shape, degraded=True) is None
    found = options(data)
    assert found["temperature"] == 0.7
    assert not {"logprobs", "top_logprobs", *sharp} & set(found)
    assert not data.get("include")


@shapes
@pytest.mark.parametrize(
    "fields", [{"logit_bias": {"5": 1}}, {"allowed_token_ids": [5]}, {"bad_words": ["a"]}]
)
def test_a_degraded_caller_gets_no_bias(shape: Shape, fields: dict[str, Any]) -> None:
    for mode in ("on", "off"):
        with pytest.raises(MalformedRequest):
            hardening(mode=mode).request(asking(shape, **fields), shape, degraded=True)


@pytest.mark.parametrize(("given_t", "used"), [(None, 1.0), (0, 0.7), (0.9, 0.9), (2, 2)])
def test_the_temperature_has_a_floor(given_t: float | None, used: float) -> None:
    for shape in (Shape.CHAT, Shape.ANTHROPIC):
        data: dict[str, Any] = {"temperature": given_t}
        hardening().request(data, shape, degraded=True)
        assert data["temperature"] == used
    with pytest.raises(MalformedRequest):
        hardening().request({"temperature": "0"}, Shape.CHAT, degraded=True)


# -- answers -------------------------------------------------------------------------------------

values = st.integers(-2_000, 0).map(lambda n: n / 100)


def listed(asked: int, own: int, logits: list[float]) -> list[int]:
    """The tokens that vLLM lists: the chosen one first, then the likeliest, `asked` at most."""
    ranked = sorted(range(len(logits)), key=lambda n: -logits[n])
    return list(dict.fromkeys([own, *ranked[:asked]]))[:asked]


@given(
    logits=st.lists(values, min_size=6, max_size=12, unique=True),
    own=st.integers(0, 11),
    shown=st.integers(0, 4),
)
@pytest.mark.parametrize("kind", ["chat", "responses", "tokens"])
def test_only_the_likeliest_are_told(kind: str, logits: list[float], own: int, shown: int) -> None:
    """The rank rule: with five likeliest at most, nobody learns the value of a sixth."""
    own %= len(logits)
    top_k, key = 4, "token_id" if kind == "tokens" else "token"
    extra = {"rank": 7} if kind == "tokens" else {}
    tops = [{key: n, "logprob": logits[n]} for n in listed(top_k + 1, own, logits)]
    entry = {key: own, "logprob": logits[own], "top_logprobs": tops, **extra}
    answer = {
        "chat": {"choices": [{"logprobs": {"content": [entry]}}]},
        "tokens": {"choices": [{"logprobs": {"content": [entry]}}]},
        "responses": {"output": [{"content": [{"logprobs": [entry]}]}]},
    }[kind]
    assert LogprobEditor(shown, 6).body(answer)
    ranked = sorted(logits, reverse=True)
    rank = ranked.index(logits[own])
    told = [one["logprob"] for one in entry["top_logprobs"]]
    assert told == [round(v, 6) for v in ranked[:shown]]
    if rank >= top_k:
        assert entry["logprob"] == CONCEALED
        assert entry.get("rank") is None
    else:
        assert entry["logprob"] == round(logits[own], 6)


def test_a_plain_completion() -> None:
    choice: dict[str, Any] = {
        "logprobs": {
            "tokens": ["a", "z", "q"],
            "token_logprobs": [-0.123456, -9.5, None],
            "top_logprobs": [
                {"a": -0.123456, "b": -1.0, "c": -2.0}, {"z": -9.5, "a": -0.5, "b": -1.0}, None
            ],
            "text_offset": [0, 1, 2],
        }
    }  # fmt: skip
    LogprobEditor(1, 2).body({"choices": [choice]})
    assert choice["logprobs"]["token_logprobs"] == [-0.12, CONCEALED, None]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.12}, {"a": -0.5, "z": CONCEALED}, None]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda entries: {"type": "response.output_text.delta", "logprobs": entries},
        lambda entries: {"type": "response.output_text.done", "logprobs": entries},
        lambda entries: {"part": {"type": "output_text", "logprobs": entries}},
        lambda entries: {"item": {"content": [{"logprobs": entries}]}},
        lambda entries: {"response": {"output": [{"content": [{"logprobs": entries}]}]}},
        lambda entries: {"output": [{"type": "reasoning"}, {"content": [{"logprobs": entries}]}]},
        lambda entries: {"choices": [{"logprobs": {"content": entries}}]},
    ],
)
def test_every_place_of_a_stream(wrap: Any) -> None:
    entry = {"token": "z", "logprob": -7.0, "top_logprobs": [{"token": "z", "logprob": -7.0}]}
    assert LogprobEditor(5, 2).body(wrap([entry]))
    assert entry == {"token": "z", "logprob": CONCEALED, "top_logprobs": []}


@pytest.mark.parametrize(
    "payload",
    [
        None, [], "x", 5, {}, {"choices": None}, {"choices": ["x"]}, {"logprobs": None},
        {"tools": [{"logprobs": {"a": 1}}]},
    ],
)  # fmt: skip
def test_what_holds_none_is_left_alone(payload: Any) -> None:
    before = copy.deepcopy(payload)
    assert not LogprobEditor(5, 2).body(payload)
    assert payload == before


def test_the_raw_answer_is_not_given_beside_the_one_that_is_read() -> None:
    with pytest.raises(MalformedRequest, match="enable_response_messages"):
        hardening().request({"enable_response_messages": True}, Shape.RESPONSES)
