"""Which tools a request declares, and what becomes of approval items."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import MalformedRequest
from vauban.protocol.calls import ApprovalAnswer, declared_tools, take_approval_items
from vauban.protocol.shapes import Shape

ASKED = {"type": "mcp_approval_request", "id": "apr_1", "name": "t", "arguments": "{}"}
YES = {"type": "mcp_approval_response", "approval_request_id": "apr_1", "approve": True}
TURN = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "name": "t", "arguments": "{}"}


def test_tools_of_every_protocol() -> None:
    data = {
        "tools": [
            {"type": "function", "function": {"name": "a", "parameters": {}}},
            {"type": "function", "name": "b"}, {"name": "c", "input_schema": {}},
            {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "d"}]},
            {"type": "web_search"}, {"name": 7}, {"function": {}}, None, "x",
        ]
    }  # fmt: skip
    assert list(declared_tools(data)) == ["a", "b", "c", "n__d"]
    for nothing in ({}, {"tools": None}, {"tools": "x"}, {"tools": {}}):
        assert declared_tools(nothing) == {}


def test_a_digest_is_the_tools_own() -> None:
    def digest(tool: Any) -> str:
        return declared_tools({"tools": [tool]})["a"]

    tool = {"name": "a", "description": "x", "parameters": {"p": 1, "q": 2}}
    same = json.loads(json.dumps(dict(reversed(tool.items()))))
    assert digest(tool) == digest(same)
    for changed in ({"description": "y"}, {"parameters": {"p": 1}}, {"strict": True}):
        assert digest({**tool, **changed}) != digest(tool)


def test_a_tool_that_is_nested_too_deeply() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(MalformedRequest):
        declared_tools({"tools": [{"name": "a", "parameters": deep}]})


@pytest.mark.parametrize(
    ("items", "left", "answer"),
    [
        ([TURN, ASKED, YES], [TURN], ApprovalAnswer("apr_1", True, "")),
        ([TURN, YES, ASKED], [TURN], ApprovalAnswer("apr_1", True, "")),
        ([YES], [], ApprovalAnswer("apr_1", True, "")),
        ([TURN, ASKED, {**YES, "approve": False, "reason": "r" * 600}], [TURN],
         ApprovalAnswer("apr_1", False, "r" * 500)),
        ([TURN, ASKED, YES, CALL], [TURN, CALL], None),
        ([TURN, ASKED, YES, TURN], [TURN, TURN], None),
        ([TURN, ASKED], [TURN], None),
        ([TURN], [TURN], None),
        ([], [], None),
        ([ASKED, YES, TURN, {**YES, "approval_request_id": "apr_2"}], [TURN],
         ApprovalAnswer("apr_2", True, "")),
    ],
)  # fmt: skip
def test_approval_items(items: list[Any], left: list[Any], answer: Any) -> None:
    data: dict[str, Any] = {"input": items}
    assert take_approval_items(data, Shape.RESPONSES) == answer
    assert data["input"] == left


@given(
    st.lists(st.sampled_from([TURN, ASKED, YES, CALL, None, "x", 7, {"type": []}]), max_size=8),
    st.sampled_from(list(Shape)),
)
def test_no_item_stays_and_no_other_protocol_is_touched(items: list[Any], shape: Shape) -> None:
    data: dict[str, Any] = {"input": [*items]}
    answer = take_approval_items(data, shape)
    if shape is not Shape.RESPONSES:
        assert (answer, data["input"]) == (None, items)
    else:
        assert data["input"] == [item for item in items if item not in (ASKED, YES)]


def item(approval_id: str, approve: bool) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": approval_id, "approve": approve}


A, B = "apr_" + "a" * 24, "apr_" + "b" * 24


@pytest.mark.parametrize(
    ("items", "approve"),
    [
        ([item(A, True), item(f"{A}-1", True)], True),
        ([item(A, True), item(f"{A}-1", False)], False),
        ([item(f"{A}-1", False), item(A, True)], False),
        ([item(A, False), ASKED, item(f"{A}-1", True)], False),
        ([item(B, False), ASKED, item(A, True)], True),  # an older one has had its effect
    ],
)
def test_a_no_to_one_call_of_a_turn_is_a_no_to_all(items: list[Any], approve: bool) -> None:
    answer = take_approval_items({"input": [TURN, *items]}, Shape.RESPONSES)
    assert answer == ApprovalAnswer(A, approve, "")


def test_two_approvals_are_not_answered_at_once() -> None:
    with pytest.raises(MalformedRequest, match="one approval"):
        take_approval_items({"input": [TURN, item(A, True), item(B, False)]}, Shape.RESPONSES)
