"""Tool calls in answers: withheld whole and streamed, in every protocol, and passed unchanged."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.approval import Call
from vauban.access.tool_rules import ToolDecision
from vauban.hosts.vllm.rewrite import Event
from vauban.hosts.vllm.tool_gate import Outcome, Said
from vauban.hosts.vllm.withheld import AnthropicWithholder, ChoicesWithholder
from vauban.hosts.vllm.withheld_responses import ResponsesWithholder

TEXT = "[held back]"
ARGUMENTS = '{"to": "a@b.test", "n": 1}'
OBJECT = {"id": "apr_1", "state": "pending"}
KEPT = (
    Call("call_1", "send_email", '{"n":1,"to":"a@b.test"}', "", "destructive"),
    Call("call_2", "look", "{}", "", "default"),
)
OUTCOMES = {
    "ask": Outcome(ToolDecision.ASK, TEXT, OBJECT, KEPT),
    "deny": Outcome(ToolDecision.DENY, TEXT, {"id": None, "state": "denied"}),
    "allow": Outcome(ToolDecision.ALLOW),
}
withheld = pytest.mark.parametrize("outcome", ["ask", "deny"])


class Judging:
    """Says the same of every turn, and remembers what it was asked."""

    def __init__(self, outcome: str) -> None:
        self.asked: list[list[Said]] = []
        self._outcome = OUTCOMES[outcome]

    async def __call__(self, calls: list[Said]) -> Outcome:
        self.asked.append(calls)
        return self._outcome


async def streamed(editor: Any, payloads: list[Any]) -> list[Any]:
    out: list[Event] = []
    for payload in payloads:
        out += await editor.events([Event(copy.deepcopy(payload), raw=b"x")])
    return [event.data for event in out if event.data is not None]


def function(number: int = 1, name: str = "send_email", arguments: str = ARGUMENTS) -> Any:
    return {"id": f"call_{number}", "type": "function",
            "function": {"name": name, "arguments": arguments}}  # fmt: skip


# -- chat completions ----------------------------------------------------------------------------


def chat(*calls: Any, content: Any = "Sure.", finish: str = "tool_calls", **more: Any) -> Any:
    message = {"role": "assistant", "content": content, "tool_calls": [*calls]}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish, **more}]}


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def call_chunks(index: int = 0, size: int = 3, call: int = 0) -> list[Any]:
    said = function(call + 1)
    head = {"index": call, **said, "function": {"name": "send_email", "arguments": ""}}
    pieces = [ARGUMENTS[n : n + size] for n in range(0, len(ARGUMENTS), size)]
    return [
        chunk(index, tool_calls=[head]),
        *(chunk(index, tool_calls=[{"index": call, "function": {"arguments": p}}]) for p in pieces),
    ]


@withheld
async def test_a_whole_chat_answer(outcome: str) -> None:
    judging = Judging(outcome)
    payload = chat(function(1), function(2, "look", "{}"), logprobs={"content": [{"token": "t"}]})
    assert await ChoicesWithholder(judging).body(payload)
    (choice,) = payload["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {
        "role": "assistant", "content": f"Sure.\n\n{TEXT}", "approval": OUTCOMES[outcome].approval,
    }  # fmt: skip
    assert choice["logprobs"] is None
    assert judging.asked == [
        [Said("call_1", "send_email", ARGUMENTS), Said("call_2", "look", "{}")]
    ]


async def test_what_passes_is_not_touched() -> None:
    for payload in (
        chat(function()),
        chat(content="hello", finish="stop"),
        {"choices": []},
        {},
        [],
    ):
        before = copy.deepcopy(payload)
        assert not await ChoicesWithholder(Judging("allow")).body(payload)
        assert payload == before


async def test_each_choice_is_a_turn_of_its_own() -> None:
    judging = Judging("deny")
    payload = {"choices": chat(function())["choices"] + chat(function(2))["choices"]}
    await ChoicesWithholder(judging).body(payload)
    assert [len(asked) for asked in judging.asked] == [1, 1]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_an_answer_that_was_cut_stays_one(finish: str) -> None:
    payload = chat(function(arguments='{"to": "a@'), finish=finish)
    await ChoicesWithholder(Judging("deny")).body(payload)
    assert payload["choices"][0]["finish_reason"] == finish


@withheld
@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_streamed_chat_answer(outcome: str, size: int) -> None:
    judging = Judging(outcome)
    payloads = [
        chunk(role="assistant", content=""), chunk(content="Su"), chunk(content="re."),
        *call_chunks(size=size), chunk(finish="tool_calls"),
    ]  # fmt: skip
    out = await streamed(ChoicesWithholder(judging), payloads)
    assert "a@b.test" not in json.dumps(out)
    assert "send_email" not in json.dumps(out)
    assert [p["choices"][0]["delta"].get("content") for p in out[:3]] == ["", "Su", "re."]
    last = out[-1]["choices"][0]
    assert last["finish_reason"] == "stop"
    assert last["delta"] == {"content": TEXT, "approval": OUTCOMES[outcome].approval}
    assert judging.asked == [[Said("call_1", "send_email", ARGUMENTS)]]


def put_together(out: list[Any]) -> dict[int, dict[int, dict[str, str]]]:
    """Calls as a client does it."""
    calls: dict[int, dict[int, dict[str, str]]] = {}
    for payload in out:
        for choice in payload["choices"]:
            for piece in choice["delta"].get("tool_calls") or ():
                known = calls.setdefault(choice["index"], {}).setdefault(
                    piece["index"], {"id": "", "name": "", "arguments": ""}
                )
                known["id"] += piece.get("id") or ""
                for name in ("name", "arguments"):
                    known[name] += piece["function"].get(name) or ""
    return calls


@given(st.randoms(use_true_random=False), st.integers(1, 30), st.integers(1, 3), st.integers(1, 3))
def test_streamed_calls_that_pass_are_what_they_were(
    shuffle: Any, size: int, choices: int, calls: int
) -> None:
    import asyncio

    rows = [
        [piece for call in range(calls) for piece in call_chunks(index, size, call)]
        + [chunk(index, "tool_calls")]
        for index in range(choices)
    ]
    payloads = []
    while rows := [row for row in rows if row]:
        payloads.append(shuffle.choice(rows).pop(0))
    out = asyncio.run(streamed(ChoicesWithholder(Judging("allow")), payloads))
    assert put_together(out) == put_together(payloads)
    ends = [c["finish_reason"] for p in out for c in p["choices"] if c["finish_reason"]]
    assert ends == ["tool_calls"] * choices


async def test_a_stream_that_was_stopped_gives_no_call() -> None:
    judging = Judging("allow")
    out = await streamed(
        ChoicesWithholder(judging), [*call_chunks(), chunk(finish="content_filter")]
    )
    assert put_together(out) == {}
    assert out[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert judging.asked == []


async def test_a_stream_that_breaks_off_gives_no_call() -> None:
    out = await streamed(ChoicesWithholder(Judging("allow")), call_chunks())
    assert put_together(out) == {}


@withheld
async def test_the_old_form_of_a_call(outcome: str) -> None:
    payload = chat()
    del payload["choices"][0]["message"]["tool_calls"]
    payload["choices"][0]["message"]["function_call"] = function()["function"]
    assert await ChoicesWithholder(Judging(outcome)).body(payload)
    assert "function_call" not in payload["choices"][0]["message"]
    pieces = [
        chunk(function_call={"name": "send_email", "arguments": ""}),
        chunk(function_call={"arguments": ARGUMENTS}),
        chunk(finish="function_call"),
    ]
    assert "a@b" not in json.dumps(await streamed(ChoicesWithholder(Judging(outcome)), pieces))
    passed = await streamed(ChoicesWithholder(Judging("allow")), pieces)
    assert passed[-1]["choices"][0]["delta"]["function_call"]["arguments"] == ARGUMENTS


async def test_what_spells_a_call_comes_with_it() -> None:
    pieces = call_chunks(size=20)
    for number, piece in enumerate(pieces):
        piece["choices"][0]["logprobs"] = {"content": [{"token": str(number)}]}
    out = await streamed(ChoicesWithholder(Judging("allow")), [*pieces, chunk(finish="stop")])
    assert [len(p["choices"][0]["logprobs"]["content"]) for p in out[-1:]] == [len(pieces)]
    out = await streamed(ChoicesWithholder(Judging("deny")), [*pieces, chunk(finish="stop")])
    assert not any(p["choices"][0].get("logprobs") for p in out)


# -- Anthropic -----------------------------------------------------------------------------------

USED = {"type": "tool_use", "id": "call_1", "name": "send_email", "input": json.loads(ARGUMENTS)}


def block_events(index: int, block: dict[str, Any], size: int = 4) -> list[Any]:
    is_call = block["type"] == "tool_use"
    text = ARGUMENTS if is_call else block["text"]
    start = {**block, "input": {}} if is_call else {**block, "text": ""}
    kind, name = ("input_json_delta", "partial_json") if is_call else ("text_delta", "text")
    deltas = [{"type": kind, name: text[n : n + size]} for n in range(0, len(text), size)]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def message_events(*blocks: dict[str, Any], stop: str = "tool_use") -> list[Any]:
    return [
        {"type": "message_start", "message": {"content": []}},
        *(e for index, block in enumerate(blocks) for e in block_events(index, block)),
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


def blocks_of(events: list[Any]) -> list[str]:
    """Texts of the blocks as a client puts them together; it counts on their order."""
    blocks: list[str] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append("")
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            blocks[-1] += event["delta"].get("text") or event["delta"].get("partial_json") or ""
    return blocks


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@withheld
async def test_a_whole_anthropic_answer(outcome: str) -> None:
    judging = Judging(outcome)
    payload = {"content": [said("Sure."), USED], "stop_reason": "tool_use"}
    assert await AnthropicWithholder(judging).body(payload)
    assert payload == {
        "content": [said("Sure."), said(TEXT)], "stop_reason": "end_turn",
        "approval": OUTCOMES[outcome].approval,
    }  # fmt: skip
    (asked,) = judging.asked
    assert json.loads(asked[0].arguments) == USED["input"]


@withheld
@pytest.mark.parametrize("before", [(), (said("Sure."),), (said("Well."), said("Sure."))])
@pytest.mark.parametrize("after", [(), (said("Done."),), (USED,)])
async def test_a_streamed_anthropic_answer(
    outcome: str, before: tuple[Any, ...], after: tuple[Any, ...]
) -> None:
    judging = Judging(outcome)
    out = await streamed(AnthropicWithholder(judging), message_events(*before, USED, *after))
    assert "a@b" not in json.dumps(out)
    texts = [block["text"] for block in (*before, *after) if block["type"] == "text"]
    assert blocks_of(out) == [*texts, TEXT]
    delta = next(event for event in out if event["type"] == "message_delta")
    assert delta["delta"]["stop_reason"] == "end_turn"
    assert delta["approval"] == OUTCOMES[outcome].approval
    assert out[-1]["type"] == "message_stop"
    assert [len(asked) for asked in judging.asked] == [1 + (after == (USED,))]
    assert judging.asked[0][0] == Said("call_1", "send_email", ARGUMENTS)


async def test_an_anthropic_answer_that_passes() -> None:
    events = message_events(said("Sure."), USED, said("Done."))
    out = await streamed(AnthropicWithholder(Judging("allow")), events)
    assert [event for event in out if event["type"] != "ping"] == events
    payload = {"content": [said("Sure."), USED], "stop_reason": "tool_use"}
    assert not await AnthropicWithholder(Judging("allow")).body(payload)


async def test_an_anthropic_answer_that_was_stopped() -> None:
    judging = Judging("allow")
    out = await streamed(AnthropicWithholder(judging), message_events(USED, stop="refusal"))
    assert blocks_of(out) == []
    assert judging.asked == []


async def test_an_error_in_a_stream_passes() -> None:
    error = {"type": "error", "error": {"message": "x"}}
    events = message_events(USED)[:-3]
    assert error in await streamed(AnthropicWithholder(Judging("allow")), [*events, error])
    held = [*response_events(CALLED)[:4], error]
    assert error in await streamed(ResponsesWithholder(Judging("allow")), held)


# -- Responses -----------------------------------------------------------------------------------

CALLED = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "send_email",
          "arguments": ARGUMENTS, "status": "completed"}  # fmt: skip
SECOND = {**CALLED, "id": "fc_2", "call_id": "call_2", "name": "look", "arguments": "{}"}
SPOKEN = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
          "content": [{"type": "output_text", "text": "Sure.", "annotations": []}]}  # fmt: skip


def response_events(*items: dict[str, Any], end: str = "response.completed") -> list[Any]:
    steps: list[dict[str, Any]] = [{"type": "response.created", "response": {"output": []}}]
    for place, item in enumerate(items):
        where = {"output_index": place, "item_id": item["id"]}
        if item["type"] == "function_call":
            begun = {**item, "arguments": "", "status": "in_progress"}
            text, kind = item["arguments"], "response.function_call_arguments"
            done = {"arguments": text}
        else:
            begun = {**item, "content": []}
            text, kind = item["content"][0]["text"], "response.output_text"
            done = {"text": text}
        steps.append({"type": "response.output_item.added", **where, "item": begun})
        steps += [{"type": f"{kind}.delta", **where, "delta": letter} for letter in text]
        steps.append({"type": f"{kind}.done", **where, **done})
        steps.append({"type": "response.output_item.done", **where, "item": item})
    status = end.rpartition(".")[2]
    steps.append({"type": end, "response": {"output": [*items], "status": status}})
    return [{**step, "sequence_number": number} for number, step in enumerate(steps)]


@withheld
async def test_a_whole_response(outcome: str) -> None:
    judging = Judging(outcome)
    payload: dict[str, Any] = {"output": [SPOKEN, CALLED, SECOND], "status": "completed"}
    assert await ResponsesWithholder(judging).body(payload)
    first, *rest = payload["output"]
    assert first == SPOKEN
    check_items(rest, outcome)
    assert payload["approval"] == OUTCOMES[outcome].approval
    assert [call.name for call in judging.asked[0]] == ["send_email", "look"]


def check_items(items: list[Any], outcome: str) -> None:
    if outcome == "ask":
        assert items == [
            {"type": "mcp_approval_request", "id": id_, "name": call.name,
             "arguments": call.arguments, "server_label": "client"}
            for id_, call in zip(["apr_1", "apr_1-1"], KEPT, strict=True)
        ]  # fmt: skip
    else:
        assert [item["content"][0]["text"] for item in items] == [TEXT] * 2
        assert {item["type"] for item in items} == {"message"}


@withheld
async def test_a_streamed_response(outcome: str) -> None:
    judging = Judging(outcome)
    events = response_events(SPOKEN, CALLED, SECOND)
    out = await streamed(ResponsesWithholder(judging), events)
    assert [event["sequence_number"] for event in out] == list(range(len(out)))
    assert not [e for e in out if "function_call" in e["type"]]
    before = [e for e in events if e.get("output_index") == 0]
    assert [e for e in out if e.get("output_index") == 0] == before
    done = [e["item"] for e in out if e["type"] == "response.output_item.done"]
    assert done == out[-1]["response"]["output"]
    assert done[0] == SPOKEN
    check_items(done[1:], outcome)
    (asked,) = judging.asked
    assert [(c.id, c.name, c.arguments) for c in asked] == [
        ("call_1", "send_email", ARGUMENTS), ("call_2", "look", "{}")
    ]  # fmt: skip
    if outcome == "deny":
        spoken = "".join(e["delta"] for e in out if e["type"] == "response.output_text.delta")
        assert spoken == f"Sure.{TEXT}{TEXT}"


async def test_a_response_that_passes() -> None:
    events = response_events(CALLED, SPOKEN)
    assert await streamed(ResponsesWithholder(Judging("allow")), events) == events


async def test_calls_that_only_the_end_of_a_stream_tells_of() -> None:
    judging = Judging("deny")
    last = response_events(CALLED)[-1]
    out = await streamed(ResponsesWithholder(judging), [last])
    assert "a@b" not in json.dumps(out)
    assert len(judging.asked) == 1


async def test_a_call_that_only_the_end_tells_of_is_judged_beside_others() -> None:
    judging = Judging("deny")
    events = response_events(SECOND)
    events[-1]["response"]["output"] = [CALLED, SECOND]
    out = await streamed(ResponsesWithholder(judging), events)
    assert "a@b" not in json.dumps(out)
    assert sorted(call.name for call in judging.asked[0]) == ["look", "send_email"]


async def test_a_call_for_another_server_is_the_clients_unless_it_was_made() -> None:
    call = {**CALLED, "type": "mcp_call", "server_label": "files"}
    for output, judged in ((None, 1), ("done", 0)):
        judging = Judging("deny")
        payload = {"output": [{**call, "output": output}]}
        assert await ResponsesWithholder(judging).body(payload) is bool(judged)
        assert len(judging.asked) == judged


@pytest.mark.parametrize("end", ["response.incomplete", "response.failed"])
async def test_a_response_that_was_stopped(end: str) -> None:
    events = response_events(CALLED, end=end)
    events[-1]["response"] = {"output": [], "incomplete_details": {"reason": "content_filter"}}
    out = await streamed(ResponsesWithholder(Judging("allow")), events)
    assert "a@b" not in json.dumps(out)
    assert out[-1]["type"] == end


async def test_a_custom_tool_and_a_namespace() -> None:
    judging = Judging("deny")
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "run", "input": "rm -rf /"}
    named = {**CALLED, "namespace": "bank"}
    await ResponsesWithholder(judging).body({"output": [custom, named]})
    (asked,) = judging.asked
    assert asked[0] == Said("c", "run", '{"input": "rm -rf /"}', "", "custom")
    assert asked[1].tool == "bank__send_email"


@pytest.mark.parametrize(
    "payload",
    [None, 7, [], {}, {"choices": None}, {"choices": [{}]}, {"choices": [{"message": None}]},
     {"content": None}, {"content": "text"}, {"content": ["text"]}, {"output": None},
     {"output": ["x", None]}, {"output": [{"type": "reasoning"}]}],
)  # fmt: skip
async def test_what_has_no_call_passes(payload: Any) -> None:
    for make in (ChoicesWithholder, AnthropicWithholder, ResponsesWithholder):
        before = copy.deepcopy(payload)
        assert not await make(Judging("deny")).body(payload)
        assert await streamed(make(Judging("deny")), [payload]) == (
            [] if before is None else [before]
        )
        assert payload == before
