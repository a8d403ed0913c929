"""Options that need a scope, wherever in a request they stand."""

from __future__ import annotations

from typing import Any

import pytest

from vauban.errors import Forbidden, MalformedRequest
from vauban.hosts.vllm.routes import RouteTable, shape_of
from vauban.policy import Policy, RoutesPolicy
from vauban.protocol.bodies import Body
from vauban.protocol.features import check_body_features, check_fields
from vauban.protocol.shapes import Shape

PLAIN = frozenset({"chat", "completions"})
ALL = frozenset({"*"})

NEEDS = [
    ("logprobs", {"logprobs": True}),
    ("logprobs", {"logprobs": 0}),
    ("logprobs", {"prompt_logprobs": 0}),
    ("logprobs", {"top_logprobs": 3}),
    ("tools", {"tools": [{"type": "function"}]}),
    ("tools", {"functions": [{"name": "f"}]}),
    ("structured_outputs", {"response_format": {"type": "json_object"}}),
    ("structured_outputs", {"structured_outputs": {"regex": "a"}}),
    ("token_ids", {"return_token_ids": True}),
]
FREE: list[dict[str, Any]] = [
    {"logprobs": None},
    {"logprobs": False, "top_logprobs": 0},
    {"tools": []},
    {"tools": None},
    {"response_format": {"type": "text"}},
    {"return_token_ids": False},
    {"temperature": 0.5, "max_tokens": 3},
]


@pytest.mark.parametrize(("feature", "fields"), NEEDS)
def test_a_feature_needs_its_scope(feature: str, fields: dict[str, Any]) -> None:
    for data in (fields, {"sampling_params": fields}):
        with pytest.raises(Forbidden, match=f"feature:{feature}"):
            check_fields(data, Shape.CHAT, PLAIN, Policy())
        check_fields(data, Shape.CHAT, PLAIN | {f"feature:{feature}"}, Policy())
        check_fields(data, Shape.CHAT, ALL, Policy())


@pytest.mark.parametrize(("feature", "fields"), NEEDS)
def test_a_field_above_hides_none_in_the_sampling_parameters(
    feature: str, fields: dict[str, Any]
) -> None:
    data = {**dict.fromkeys(fields), "sampling_params": fields}
    with pytest.raises(Forbidden, match=f"feature:{feature}"):
        check_fields(data, Shape.TOKENS, PLAIN, Policy())


@pytest.mark.parametrize("fields", FREE)
def test_what_asks_for_nothing_needs_nothing(fields: dict[str, Any]) -> None:
    check_fields(fields, Shape.CHAT, PLAIN, Policy())


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
def test_pointing_the_server_at_other_hosts_is_for_admins(name: str) -> None:
    with pytest.raises(Forbidden, match="admin"):
        check_fields({name: {"remote_host": "x"}}, Shape.CHAT, ALL, Policy())
    check_fields({name: {"remote_host": "x"}}, Shape.CHAT, ALL | {"admin"}, Policy())


def test_beam_search_is_refused() -> None:
    for data in ({"use_beam_search": True}, {"sampling_params": {"use_beam_search": True}}):
        with pytest.raises(MalformedRequest, match="beam search"):
            check_fields(data, Shape.COMPLETION, ALL, Policy())


@pytest.mark.parametrize("name", ["echo", "prompt_logprobs", "return_token_ids"])
def test_the_operators_instruction_is_not_given_back(name: str) -> None:
    secret = Policy.model_validate({"sandwich": {"instruction": "be kind"}})
    with pytest.raises(Forbidden, match="prompt:system"):
        check_fields({name: 1}, Shape.COMPLETION, ALL, secret)
    check_fields({name: 1}, Shape.COMPLETION, ALL, Policy())
    check_fields({name: 1}, Shape.COMPLETION, ALL | {"prompt:system"}, secret)


def test_the_servers_own_tools_are_shut() -> None:
    for tool in ({"type": "web_search"}, {"type": "mcp"}, {"type": ["function"]}, {}):
        with pytest.raises(MalformedRequest, match="own tools"):
            check_fields({"tools": [tool]}, Shape.RESPONSES, ALL, Policy())
        opened = Policy.model_validate({"routes": {"builtin_tools": True}})
        check_fields({"tools": [tool]}, Shape.RESPONSES, ALL, opened)
    check_fields({"tools": [{"type": "function"}]}, Shape.RESPONSES, ALL, Policy())


def test_media_and_token_ids_need_their_scopes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    for data, feature in [
        ({"messages": [{"role": "user", "content": [image]}]}, "multimodal"),
        ({"prompt": [65, 66]}, "token_ids"),
    ]:
        body = Body(data, trusted_system=False, decode=lambda _: "x")
        with pytest.raises(Forbidden, match=f"feature:{feature}"):
            check_body_features(body, PLAIN, Policy())
        check_body_features(body, PLAIN | {f"feature:{feature}"}, Policy())


def test_the_shape_of_an_invocation_is_in_its_body() -> None:
    route = RouteTable(RoutesPolicy()).find("POST", "/invocations")
    assert route is not None
    assert shape_of(route, {"messages": []}) is Shape.CHAT
    assert shape_of(route, {"prompt": "x"}) is Shape.COMPLETION
    assert shape_of(route, {"input": "x"}) is Shape.POOLING
