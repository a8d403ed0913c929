"""However an answer is cut into pieces, the same reaches the client; what no editor changes passes
byte for byte, and what can't be read does not pass."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.hosts.vllm import rewrite
from vauban.hosts.vllm.answers import error_answer
from vauban.hosts.vllm.rewrite import Event, Rewriter
from vauban.protocol.shapes import Shape

EVENTS, JSON = "text/event-stream; charset=utf-8", "application/json"


class Upper:
    """Puts the text of what it is given in capitals; says goodbye at the end; ends at a word."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.stopped = False
        self._stop_at = stop_at

    def body(self, payload: Any) -> bool:
        if not isinstance(payload, dict) or payload.get("text", "").isupper():
            return False
        payload["text"] = payload.get("text", "").upper()
        return True

    def event(self, event: Event) -> Iterable[Event]:
        if isinstance(event.data, dict) and event.data.get("text") == self._stop_at:
            self.stopped = True
            return (Event({"text": "stopped"}),)
        return (event.changed() if self.body(event.data) else event,)

    def end(self) -> Iterable[Event]:
        return (Event({"text": "bye"}),)


async def rewritten(
    chunks: list[bytes], editors: list[Any], kind: str = EVENTS, status: int = 200
) -> tuple[list[dict[str, Any]], int]:
    """What the client gets, and how often the application was stopped."""
    sent: list[dict[str, Any]] = []
    stops: list[int] = []

    async def send(message: Any) -> None:
        sent.append(message)

    rewriter = Rewriter(
        send, editors, lambda error: error_answer(error, Shape.CHAT, "r"), lambda: stops.append(1)
    )
    headers = [(b"content-type", kind.encode()), (b"x-vauban-request-id", b"r")]
    if kind == JSON:
        headers.append((b"content-length", str(sum(map(len, chunks))).encode()))
    await rewriter.send({"type": "http.response.start", "status": status, "headers": headers})
    for chunk in chunks:
        await rewriter.send({"type": "http.response.body", "body": chunk, "more_body": True})
    await rewriter.send({"type": "http.response.body", "body": b"", "more_body": False})
    return sent, len(stops)


def run(chunks: list[bytes], editors: list[Any], **options: Any) -> bytes:
    sent, _ = asyncio.run(rewritten(chunks, editors, **options))
    return body_of(sent)


def body_of(sent: list[dict[str, Any]]) -> bytes:
    assert [m["type"] for m in sent].count("http.response.start") == 1
    assert not sent[-1].get("more_body", False)
    assert all(m.get("more_body") for m in sent[1:-1])
    return b"".join(m.get("body", b"") for m in sent)


def pieces(whole: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in pairwise(places)]


texts = st.text(max_size=12)
events = st.one_of(
    texts.map(lambda t: b"data: " + json.dumps({"text": t}).encode() + b"\n\n"),
    texts.map(
        lambda t: b"event: a\ndata: " + json.dumps({"text": t}, ensure_ascii=False).encode(
            "utf-8", "replace") + b"\n\n"
    ),
    st.sampled_from([
        b": a comment\n\n", b"data: [DONE]\n\n", b'data: {"text":\ndata: "two lines"}\n\n',
        b'data:{"text":"x"}\r\n\r\n', b"\n\n", b'id: 5\ndata: ["x"]\n\n', b"data: null\r\r",
    ]),
)  # fmt: skip


@given(parts=st.lists(events, max_size=8), cuts=st.lists(st.integers(0, 1_000), max_size=12))
def test_any_cut_is_the_whole(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    assert run(pieces(whole, cuts), [Upper()]) == run([whole], [Upper()])


@given(parts=st.lists(events, max_size=8), cuts=st.lists(st.integers(0, 1_000), max_size=12))
def test_without_editors_nothing_changes(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    assert run(pieces(whole, cuts), []) == whole


class Nothing(Upper):
    def body(self, payload: Any) -> bool:
        return False

    def end(self) -> Iterable[Event]:
        return ()


@given(parts=st.lists(events, max_size=8), cuts=st.lists(st.integers(0, 1_000), max_size=12))
def test_what_no_editor_changes_passes_as_it_came(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    assert run(pieces(whole, cuts), [Nothing()]) == whole


def test_the_end_of_each_editor_goes_through_the_next() -> None:
    out = run([b'data: {"text":"a"}\n\n'], [Upper(), Upper()])
    assert out == b'data: {"text":"A"}\n\ndata: {"text":"BYE"}\n\ndata: {"text":"bye"}\n\n'


def test_an_event_without_its_blank_line_is_read_too() -> None:
    assert run([b'data: {"text":', b'"a"}'], [Upper()]).startswith(b'data: {"text":"A"}\n\n')


async def test_a_stopped_stream_ends_at_once() -> None:
    chunks = [b'data: {"text":"a"}\n\ndata: {"text":"b"}\n\ndata: {"text":"c"}\n\n', b"more"]
    sent, stops = await rewritten(chunks, [Upper(stop_at="b")])
    assert body_of(sent) == b'data: {"text":"A"}\n\ndata: {"text":"stopped"}\n\n'
    assert stops == 1


# -- whole bodies --------------------------------------------------------------------------------


@given(text=texts, cuts=st.lists(st.integers(0, 200), max_size=5))
def test_a_body_is_edited_whole(text: str, cuts: list[int]) -> None:
    chunks = pieces(json.dumps({"text": text}).encode(), cuts)
    sent, _ = asyncio.run(rewritten(chunks, [Upper()], JSON))
    body = body_of(sent)
    assert json.loads(body) == {"text": text.upper()}
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(body)).encode()


def test_an_unchanged_body_keeps_its_bytes() -> None:
    for body in (b'{ "text" : "A" }', b"null", b"[1,  2]", b""):
        assert run([body], [Upper()], kind=JSON) == body


def test_text_that_is_no_unicode() -> None:
    assert json.loads(run([b'{"text": "\\ud800x"}'], [Upper()], kind=JSON)) == {"text": "\ud800X"}


@pytest.mark.parametrize("status", [400, 404, 500])
def test_errors_pass(status: int) -> None:
    assert run([b"not json"], [Upper()], kind=JSON, status=status) == b"not json"


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"{", JSON), (b"[" * 100_000, JSON), (b"words", "text/plain"), (b"x", "")],
)
async def test_what_cannot_be_read_does_not_pass(body: bytes, kind: str) -> None:
    sent, stops = await rewritten([body], [Upper()], kind)
    assert sent[0]["status"] == 502
    assert json.loads(body_of(sent))["error"]["code"] == "unreadable_answer"
    assert (b"x-vauban-request-id", b"r") in sent[0]["headers"]
    assert stops == 1


async def test_a_broken_event_ends_the_stream() -> None:
    chunks = [b'data: {"text":"a"}\n\ndata: {"text"\n\ndata: {"text":"secret"}\n\n']
    sent, stops = await rewritten(chunks, [Upper()])
    body = body_of(sent)
    assert b"unreadable_answer" in body
    assert b"secret" not in body
    assert stops == 1


async def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "MAX_BODY_BYTES", 100)
    monkeypatch.setattr(rewrite, "MAX_EVENT_BYTES", 100)
    for kind in (JSON, EVENTS):
        sent, stops = await rewritten([b'data: {"text":"', b"x" * 101, b'"}\n\n'], [Upper()], kind)
        assert b"unreadable_answer" in body_of(sent)
        assert b"xxx" not in body_of(sent)
        assert stops == 1
