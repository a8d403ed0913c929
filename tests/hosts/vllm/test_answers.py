"""What a client gets, in a form that its own library reads."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from vauban import errors
from vauban.errors import RateLimited, RequestError
from vauban.hosts.vllm.answers import Answer, blocked_answer, error_answer, refusal_answer
from vauban.protocol.shapes import Shape
from vauban.types import Reason

TEXT = 'No, "thank" you.\nReally é.'
ERRORS = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, RequestError)]
WITH_REFUSAL = [Shape.CHAT, Shape.COMPLETION, Shape.RESPONSES, Shape.ANTHROPIC]


def events(answer: Answer) -> list[tuple[str | None, Any]]:
    """(event name, data) of a stream, as a client splits it."""
    found = []
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("error", ERRORS)
def test_every_error_reaches_the_wire_in_every_protocol(
    error: type[RequestError], shape: Shape
) -> None:
    answer = error_answer(error("what is wrong"), shape, "r1")
    assert answer.status == error.status
    body = json.loads(answer.body)
    assert body["error"]["message"] == "what is wrong"
    assert body["error"]["code"] == error.code
    assert body["error"]["type"].endswith("_error")
    assert "r1" in answer.body.decode()
    if shape is Shape.ANTHROPIC:
        assert body["type"] == "error"


def test_headers_of_errors() -> None:
    slow = error_answer(RateLimited("slow", retry_after_s=7), Shape.CHAT, "r1")
    assert ("retry-after", "7") in slow.headers
    who = error_answer(errors.Unauthenticated("who"), Shape.CHAT, "r1")
    assert ("www-authenticate", "Bearer") in who.headers


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_words(reason: Reason, shape: Shape) -> None:
    answer = blocked_answer(shape, reason, "r1")
    error = json.loads(answer.body)["error"]
    assert answer.status == 400
    assert (error["code"], error["reason"]) == ("content_filter", reason.value)
    assert error["message"].startswith("The request was blocked")


def refused(shape: Shape, *, stream: bool) -> Answer:
    answer = refusal_answer(shape, TEXT, "r1", model="standin", stream=stream)
    assert answer is not None
    assert answer.status == 200
    return answer


@pytest.mark.parametrize("shape", [s for s in Shape if s not in WITH_REFUSAL])
def test_protocols_without_a_refusal(shape: Shape) -> None:
    assert refusal_answer(shape, TEXT, "r1", model="m", stream=False) is None


def test_chat() -> None:
    answer = ChatCompletion.model_validate_json(refused(Shape.CHAT, stream=False).body, strict=True)
    (choice,) = answer.choices
    assert choice.finish_reason == "content_filter"
    assert choice.message.content == choice.message.refusal == TEXT
    assert answer.usage is not None


def test_chat_stream() -> None:
    *chunks, last = events(refused(Shape.CHAT, stream=True))
    assert last == (None, "[DONE]")
    parsed = [ChatCompletionChunk.model_validate(data) for _, data in chunks]
    assert "".join(c.choices[0].delta.content or "" for c in parsed) == TEXT
    assert parsed[-1].choices[0].finish_reason == "content_filter"


def test_completion() -> None:
    answer = Completion.model_validate_json(refused(Shape.COMPLETION, stream=False).body)
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "content_filter"
    chunk, last = events(refused(Shape.COMPLETION, stream=True))
    assert Completion.model_validate(chunk[1]).choices[0].text == TEXT
    assert last[1] == "[DONE]"


def test_responses() -> None:
    answer = Response.model_validate_json(refused(Shape.RESPONSES, stream=False).body)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "content_filter"
    assert answer.output[0].content[0].refusal == TEXT  # type: ignore[union-attr]


def test_responses_stream() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    found = events(refused(Shape.RESPONSES, stream=True))
    parsed = [adapter.validate_python(data) for _, data in found]
    assert [name for name, _ in found] == [event.type for event in parsed]
    assert [event.sequence_number for event in parsed] == list(range(len(parsed)))
    assert parsed[0].type == "response.created"
    assert parsed[-1].type == "response.incomplete"
    assert "".join(e.delta for e in parsed if e.type == "response.refusal.delta") == TEXT


def test_anthropic() -> None:
    answer = AnthropicMessage.model_validate_json(refused(Shape.ANTHROPIC, stream=False).body)
    assert answer.stop_reason == "refusal"
    assert answer.content[0].text == TEXT  # type: ignore[union-attr]


def test_anthropic_stream() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    found = events(refused(Shape.ANTHROPIC, stream=True))
    parsed = [adapter.validate_python(data) for _, data in found]
    assert [name for name, _ in found] == [event.type for event in parsed]
    assert (parsed[0].type, parsed[-1].type) == ("message_start", "message_stop")
    deltas = [e.delta for e in parsed if e.type == "content_block_delta"]
    assert "".join(delta.text for delta in deltas) == TEXT
    (end,) = [e.delta for e in parsed if e.type == "message_delta"]
    assert end.stop_reason == "refusal"
