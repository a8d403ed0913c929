"""A request whose answer calls a tool: withheld, approved by somebody else, released once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vauban.access.approval import State
from vauban.access.keyfile import add_key
from vauban.access.receipt import verify_receipt
from vauban.errors import StateUnavailable
from vauban.types import RateLimit

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
TO = "boss@example.org"
ARGUMENTS = json.dumps({"to": TO, "text": "hi"})
PARAMETERS = {"type": "object", "properties": {"to": {"type": "string"}}}
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream")]


def request(path: str, name: str = "send_email", **more: Any) -> dict[str, Any]:
    """A request to each route that declares the tool."""
    asked = {"role": "user", "content": "Write to my boss."}
    described = {"name": name, "description": "x"}
    if path == RESPONSES:
        tool = {"type": "function", **described, "parameters": PARAMETERS}
        return {"model": "standin", "input": [asked], "tools": [tool], **more}
    if path == MESSAGES:
        tool = {**described, "input_schema": PARAMETERS}
        return {"model": "standin", "max_tokens": 9, "messages": [asked], "tools": [tool], **more}
    tool = {"type": "function", "function": {**described, "parameters": PARAMETERS}}
    return {"model": "standin", "messages": [asked], "tools": [tool], **more}


def answer(path: str, name: str = "send_email") -> dict[str, Any]:
    if path == RESPONSES:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name,
                "arguments": ARGUMENTS, "status": "completed"}  # fmt: skip
        return {"id": "resp_1", "object": "response", "status": "completed", "output": [item]}
    if path == MESSAGES:
        block = {"type": "tool_use", "id": "call_1", "name": name, "input": json.loads(ARGUMENTS)}
        return {"type": "message", "content": [block], "stop_reason": "tool_use"}
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": ARGUMENTS}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}


def calls_in(path: str, body: Any) -> list[tuple[str, Any]]:
    """The calls that a client would run: name and arguments."""
    if path == RESPONSES:
        items = [i for i in body["output"] if i["type"] == "function_call"]
        return [(i["name"], json.loads(i["arguments"])) for i in items]
    if path == MESSAGES:
        return [(b["name"], b["input"]) for b in body["content"] if b["type"] == "tool_use"]
    calls = body["choices"][0]["message"].get("tool_calls") or []
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]


def approval_in(path: str, body: Any) -> dict[str, Any]:
    found = body["choices"][0]["message"]["approval"] if path == CHAT else body["approval"]
    assert isinstance(found, dict)
    return found


class Site:
    """A server with keys for an agent, another one, and an approver."""

    def __init__(self, make_server: Callable[..., Any], path: Path, **sections: Any) -> None:
        self.headers: dict[str, dict[str, str]] = {}
        self.id: dict[str, str] = {}
        for name, scopes in (
            ("agent", ("*",)), ("other", ("*",)), ("approver", ("approve",)),
            ("both", ("*", "approve")),
        ):  # fmt: skip
            key, record = add_key(
                path / "keys.json", name, scopes, created=datetime.now(UTC), expires=None,
                limit=RateLimit(),
            )  # fmt: skip
            self.headers[name] = {"authorization": f"Bearer {key.text}"}
            self.id[name] = f"key:{record.id}"
        self.audit = path / "audit.log"
        self.server = make_server(identity={"keys_file": str(path / "keys.json")}, **sections)
        self.approvals = self.server.front.tool_gate.approvals

    async def ask(self, path: str, body: Any = None, *, by: str = "agent", **more: str) -> Any:
        self.server.engine.answered = json.dumps(answer(path)).encode()
        body = body or request(path)
        return await self.server.post(path, body, headers={**self.headers[by], **more})

    async def held(self, path: str, **more: Any) -> str:
        response = await self.ask(path, **more)
        return str(approval_in(path, response.json)["id"])

    def approve(self, approval_id: str) -> None:
        by = self.id["approver"]
        self.approvals.decide(approval_id, approve=True, by=by, reason="known")

    @property
    def events(self) -> list[dict[str, Any]]:
        rows = map(json.loads, self.audit.read_text().splitlines())
        return [row for row in rows if row["event"] in ("approval", "tool_call")]


@pytest.fixture
def make_site(make_server: Callable[..., Any], tmp_path: Path) -> Callable[..., Site]:
    return lambda **sections: Site(make_server, tmp_path, **sections)


@pytest.fixture
async def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


every_route = pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])


@every_route
async def test_withheld_approved_released_once(site: Site, path: str) -> None:
    first = await site.ask(path)
    assert first.status == 200
    assert calls_in(path, first.json) == []
    told = approval_in(path, first.json)
    assert told["state"] == "pending"
    assert told["calls"][0]["tool"] == "send_email"
    assert json.loads(told["calls"][0]["arguments"]) == json.loads(ARGUMENTS)
    if path != RESPONSES:
        assert told["id"] in first.body.decode().partition('approval"')[0]  # in the text, too
    header = {"X-Approval-Id": told["id"]}

    engine = site.server.engine
    asked = len(engine.bodies)
    waiting = await site.ask(path, **header)
    assert approval_in(path, waiting.json)["state"] == "pending"
    site.approve(told["id"])
    released = await site.ask(path, **header)
    assert calls_in(path, released.json) == [("send_email", json.loads(ARGUMENTS))]
    sealed = approval_in(path, released.json)["receipts"]["call_1"]
    key = site.server.front.tool_gate.receipts.public_key()
    assert (
        verify_receipt(sealed, key, tool="send_email", arguments=ARGUMENTS).caller
        == (site.id["agent"])
    )
    replayed = await site.ask(path, **header)
    assert replayed.status == 403
    assert replayed.json["error"]["code"] == "approval_refused"
    assert len(engine.bodies) == asked  # the model was not asked again
    assert [e["action"] for e in site.events if e["event"] == "approval"] == [
        "held", "approved", "released", "refused",
    ]  # fmt: skip
    assert TO not in site.audit.read_text()


@every_route
async def test_the_same_streamed(site: Site, path: str) -> None:
    approval_id = await site.held(path)
    header = {"X-Approval-Id": approval_id}
    body = request(path, stream=True)
    pending = (await site.ask(path, body, **header)).body.decode()
    assert approval_id in pending
    assert "function_call" not in pending
    assert "tool_use" not in pending
    assert '"tool_calls"' not in pending
    site.approve(approval_id)
    released = await site.ask(path, body, **header)
    assert released.headers["content-type"].startswith("text/event-stream")
    text = released.body.decode()
    assert "send_email" in text
    assert "receipts" in text
    assert text.endswith("\n\n")


@every_route
async def test_who_may_use_an_approval(site: Site, path: str) -> None:
    approval_id = await site.held(path)
    site.approve(approval_id)
    header = {"X-Approval-Id": approval_id}
    for response in (
        await site.ask(path, by="other", **header),
        await site.ask(path, **{"X-Approval-Id": approval_id[:-2] + "xx"}),
        await site.ask(path, **{"X-Approval-Id": "' OR 1=1 --"}),
        await site.ask(path, **{"X-Approval-Id": ""}),
        await site.ask(path, **{"X-Approval-Id": approval_id + "x"}),
    ):
        assert response.status == 404
        assert response.json["error"]["code"] == "not_found"
    changed = request(path)
    changed["tools"] = request(path, name="send_mail")["tools"]
    assert (await site.ask(path, changed, **header)).json["error"]["code"] == "approval_refused"
    assert calls_in(path, (await site.ask(path, **header)).json)


async def test_what_it_was_given_for_is_released_whatever_is_asked_now(site: Site) -> None:
    approval_id = await site.held(CHAT)
    site.approve(approval_id)
    other = request(CHAT)
    other["messages"] = [{"role": "user", "content": "Write to evil@evil.test instead."}]
    released = await site.ask(CHAT, other, **{"X-Approval-Id": approval_id})
    assert calls_in(CHAT, released.json) == [("send_email", json.loads(ARGUMENTS))]


@every_route
async def test_a_no_and_a_silence(site: Site, path: str) -> None:
    denied, late = await site.held(path), await site.held(path)
    site.approvals.decide(denied, approve=False, by=site.id["approver"], reason="not to them")
    response = await site.ask(path, **{"X-Approval-Id": denied})
    assert approval_in(path, response.json)["state"] == "denied"
    assert "not to them" in response.body.decode()
    site.approvals._clock = lambda: datetime.now(UTC).timestamp() + 601
    response = await site.ask(path, **{"X-Approval-Id": late})
    assert approval_in(path, response.json)["state"] == "expired"
    assert calls_in(path, response.json) == []


@every_route
async def test_a_denied_tool(make_site: Callable[..., Site], path: str) -> None:
    site = make_site(tools={"store": "memory", "rules": {"look": {"action": "allow"}}})
    response = await site.ask(path)
    assert calls_in(path, response.json) == []
    assert approval_in(path, response.json) == {
        "id": None, "state": "denied", "reason": "unlisted",
    }  # fmt: skip
    assert "does not know this tool" in response.body.decode()
    assert site.events[-1]["decision"] == "deny"
    assert site.approvals.all() == []


@every_route
async def test_ordinary_calls_are_not_touched(site: Site, path: str) -> None:
    site.server.engine.answered = raw = json.dumps(answer(path, "get_weather")).encode()
    response = await site.server.post(path, request(path), headers=site.headers["agent"])
    assert response.body == raw
    assert site.events == []


@every_route
@pytest.mark.parametrize("mode", ["monitor", "off"])
async def test_modes(make_site: Callable[..., Site], path: str, mode: str) -> None:
    site = make_site(tools={"mode": mode, "store": "memory"})
    for more in ({}, {"X-Approval-Id": "apr_" + "x" * 24}):
        response = await site.ask(path, **more)
        assert response.body == json.dumps(answer(path)).encode()
    decisions = [(e["decision"], e["enforced"]) for e in site.events]
    assert decisions == ([("ask", False)] * 2 if mode == "monitor" else [])


def tool_turn(path: str) -> dict[str, Any]:
    if path == RESPONSES:
        return {"type": "function_call_output", "call_id": "call_0", "output": "a document"}
    if path == MESSAGES:
        block = {"type": "tool_result", "tool_use_id": "call_0", "content": "a document"}
        return {"role": "user", "content": [block]}
    return {"role": "tool", "tool_call_id": "call_0", "content": "a document"}


@every_route
async def test_a_call_after_a_tool_result_needs_more(
    make_site: Callable[..., Site], path: str
) -> None:
    site = make_site(tools={"store": "memory", "rules": {"send_email": {"action": "allow"}}})
    assert calls_in(path, (await site.ask(path)).json)
    tainted = request(path)
    tainted["input" if path == RESPONSES else "messages"].append(tool_turn(path))
    response = await site.ask(path, tainted)
    assert calls_in(path, response.json) == []
    assert approval_in(path, response.json)["calls"][0]["why"] == "tainted"


async def test_without_keys_nobody_can_approve_and_the_text_says_so(server: Any) -> None:
    server.engine.answered = json.dumps(answer(CHAT)).encode()
    response = await server.post(CHAT, request(CHAT))
    assert "runs without keys" in response.json["choices"][0]["message"]["content"]


@every_route
async def test_a_dead_store_lets_no_call_out(
    site: Site, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval_id = await site.held(path)
    site.approve(approval_id)

    def dead(*_: Any) -> None:
        raise StateUnavailable("gone")

    monkeypatch.setattr(site.approvals._store, "update", dead)
    response = await site.ask(path)
    assert calls_in(path, response.json) == []
    assert approval_in(path, response.json)["reason"] == "failed"
    response = await site.ask(path, **{"X-Approval-Id": approval_id})
    assert response.status == 503
    assert response.json["error"]["code"] == "approvals_unavailable"
    monkeypatch.undo()
    assert calls_in(path, (await site.ask(path, **{"X-Approval-Id": approval_id})).json)


async def test_who_asks_too_often_is_denied(make_site: Callable[..., Site]) -> None:
    site = make_site(tools={"store": "memory", "max_calls_per_caller": 2})
    reasons = [approval_in(CHAT, (await site.ask(CHAT)).json).get("reason") for _ in range(3)]
    assert reasons == [None, None, "too_many"]
    assert approval_in(CHAT, (await site.ask(CHAT, by="other")).json)["state"] == "pending"


async def test_a_turn_leaves_whole_or_not_at_all(site: Site) -> None:
    both = answer(CHAT)
    other = {"id": "call_2", "type": "function",
             "function": {"name": "look", "arguments": '{"b": 1, "a": "\\u0430"}'}}  # fmt: skip
    both["choices"][0]["message"]["tool_calls"].append(other)
    site.server.engine.answered = json.dumps(both).encode()
    response = await site.server.post(CHAT, request(CHAT), headers=site.headers["agent"])
    told = approval_in(CHAT, response.json)
    assert [call["tool"] for call in told["calls"]] == ["send_email", "look"]
    assert told["calls"][1]["arguments"] == '{"a":"\\u0430","b":1}'
    site.approve(told["id"])
    released = await site.ask(CHAT, **{"X-Approval-Id": told["id"]})
    assert [name for name, _ in calls_in(CHAT, released.json)] == ["send_email", "look"]
    assert set(approval_in(CHAT, released.json)["receipts"]) == {"call_1", "call_2"}


CANARY = "vc7k2m9q4x8w3z5t"
HALF, OTHER = CANARY[:8], CANARY[8:]


def looks(path: str, *arguments: str) -> dict[str, Any]:
    """An answer with a harmless call for each of these."""
    made = answer(path, "look")
    if path == RESPONSES:
        made["output"] = [{**made["output"][0], "arguments": a} for a in arguments]
    elif path == MESSAGES:
        made["content"] = [{**made["content"][0], "input": json.loads(a)} for a in arguments]
    else:
        message = made["choices"][0]["message"]
        (call,) = message["tool_calls"]
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": a}} for a in arguments
        ]
    return made


@every_route
@pytest.mark.parametrize(
    ("arguments", "leaks"),
    [
        ([{"a": HALF, "b": OTHER}], True),
        ([{"a": f"x{HALF}", "n": 7, "b": [None, {"c": f"{OTHER}x"}]}], True),
        ([{"a": CANARY[:2], "b": int(CANARY[2]), "c": CANARY[3:]}], True),
        ([{"a": CANARY[:2]}, {"b": int(CANARY[2])}, {"c": CANARY[3:]}], True),
        ([{"a": HALF}, {"b": OTHER}], True),
        ([{HALF: 1, OTHER: 2}], True),
        ([{HALF[:3]: {HALF[3:]: 2}}, {OTHER: "x"}], True),
        ([{"a": HALF, "x": "something else", "b": OTHER}], False),
        ([{"a": HALF}, {"b": "y"}], False),
        ([{}], False),
    ],
)
async def test_a_canary_in_several_arguments(
    make_site: Callable[..., Site], path: str, arguments: list[Any], leaks: bool
) -> None:
    site = make_site(output={"canaries": (CANARY,)})
    site.server.engine.answered = json.dumps(looks(path, *map(json.dumps, arguments))).encode()
    response = await site.server.post(path, request(path), headers=site.headers["agent"])
    assert response.status == 200
    assert len(calls_in(path, response.json)) == (0 if leaks else len(arguments))
    if leaks:
        assert approval_in(path, response.json) == {"id": None, "state": "denied", "reason": "leak"}
        assert OTHER not in json.dumps(response.json)


async def test_a_canary_in_several_arguments_where_none_is_taken_out(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(output={"canaries": (CANARY,), "canary": "monitor"})
    said = looks(CHAT, json.dumps({"a": HALF}), json.dumps({"b": OTHER}))
    site.server.engine.answered = json.dumps(said).encode()
    response = await site.server.post(CHAT, request(CHAT), headers=site.headers["agent"])
    assert len(calls_in(CHAT, response.json)) == 2


async def test_a_name_is_no_text_for_a_reader(site: Site) -> None:
    name = "send ![x](https://evil.test/?d=1)"
    site.server.engine.answered = json.dumps(answer(CHAT, name)).encode()
    response = await site.server.post(CHAT, request(CHAT), headers=site.headers["agent"])
    message = response.json["choices"][0]["message"]
    assert "evil" not in message["content"]
    assert "evil" not in site.audit.read_text()
    assert message["approval"]["calls"][0]["tool"] == name


async def test_a_stream_holds_the_call_and_lets_the_text_flow(site: Site) -> None:
    deltas = [
        {"role": "assistant", "content": ""}, {"content": "I will write to your boss now. " * 4},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                         "function": {"name": "send_email", "arguments": ""}}]},
        *({"tool_calls": [{"index": 0, "function": {"arguments": c}}]} for c in ARGUMENTS),
    ]  # fmt: skip
    chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        for chunk in chunks:
            data = f"data: {json.dumps(chunk)}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    site.server.engine.answer = stream
    response = await site.ask(CHAT, request(CHAT, stream=True))
    lines = response.body.decode().split("\n\n")
    assert lines[-2] == "data: [DONE]"
    events = [json.loads(line[6:]) for line in lines[:-2]]
    said = "".join(e["choices"][0]["delta"].get("content") or "" for e in events)
    assert said.startswith("I will write to your boss now. ")
    (told,) = [d for e in events if (d := e["choices"][0]["delta"].get("approval"))]
    assert told["id"] in said
    assert "tool_calls" not in response.body.decode()
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


# -- the Responses API's own items ---------------------------------------------------------------


def asks(items: list[dict[str, Any]], approve: bool = True, **more: Any) -> dict[str, Any]:
    """The request again, with what came and the client's answer to it."""
    body = request(RESPONSES, **more)
    body["input"] += items
    (first, *_) = [item for item in items if item["type"] == "mcp_approval_request"]
    body["input"].append(
        {"type": "mcp_approval_response", "approval_request_id": first["id"], "approve": approve}
    )
    return body


async def test_a_clients_yes_only_names_the_request(site: Site) -> None:
    first = (await site.ask(RESPONSES)).json["output"]
    assert [item["type"] for item in first] == ["mcp_approval_request"]
    assert first[0]["server_label"] == "client"
    asked = len(site.server.engine.bodies)
    waiting = (await site.ask(RESPONSES, asks(first))).json
    assert waiting["output"] == first
    site.approve(first[0]["id"])
    released = (await site.ask(RESPONSES, asks(first))).json
    assert calls_in(RESPONSES, released) == [("send_email", json.loads(ARGUMENTS))]
    assert released["output"][0]["call_id"] == "call_1"
    assert len(site.server.engine.bodies) == asked


async def test_a_clients_no_always_counts_and_the_model_hears_of_it(site: Site) -> None:
    first = (await site.ask(RESPONSES)).json["output"]
    site.approve(first[0]["id"])
    body = asks(first, approve=False)
    body["input"][-1]["reason"] = "not now"
    assert (await site.ask(RESPONSES, body)).status == 200
    assert site.approvals.get(first[0]["id"]).state is State.DENIED
    seen = site.server.engine.bodies[-1]["input"]
    assert [item.get("type") for item in seen] == [None, None]
    assert seen[-1]["content"] == "The call of send_email was not approved. not now"


async def test_items_of_the_past_are_taken_out_and_do_nothing(site: Site) -> None:
    first = (await site.ask(RESPONSES)).json["output"]
    site.approve(first[0]["id"])
    released = (await site.ask(RESPONSES, asks(first))).json["output"]
    await site.ask(RESPONSES, asks(first, approve=False))  # too late
    note = site.server.engine.bodies[-1]["input"][-1]["content"]
    assert note == "The call of send_email has been approved already."
    body = asks(first)
    body["input"] += [*released, tool_turn(RESPONSES)]
    assert (await site.ask(RESPONSES, body)).status == 200
    kinds = [item.get("type") for item in site.server.engine.bodies[-1]["input"]]
    assert kinds == [None, "function_call", "function_call_output"]


@pytest.mark.parametrize(
    "item",
    [{}, {"approval_request_id": 7, "approve": True}, {"approval_request_id": "x", "approve": "no"},
     {"approval_request_id": "x"}],
)  # fmt: skip
async def test_answers_that_name_no_approval(site: Site, item: dict[str, Any]) -> None:
    body = request(RESPONSES)
    body["input"].append({"type": "mcp_approval_response", **item})
    assert (await site.ask(RESPONSES, body)).status == 400
    body["input"][-1] = {"type": "mcp_approval_response", "approval_request_id": "apr_x",
                         "approve": False}  # fmt: skip
    assert (await site.ask(RESPONSES, body)).status == 404


async def test_an_answer_to_a_response_that_vllm_keeps(site: Site) -> None:
    """OpenAI's usual way: the id of the response before, and the answer alone."""
    first = (await site.ask(RESPONSES)).json["output"]
    previous = site.server.front.response_ids.new(
        site.server.front.identity.authenticate(
            authorization=site.headers["agent"]["authorization"], api_key=None, client_host=None
        )
    )
    body = {**asks(first), "previous_response_id": previous}
    body["input"] = body["input"][-1:]
    site.approve(first[0]["id"])
    assert calls_in(RESPONSES, (await site.ask(RESPONSES, body)).json)


async def test_a_stored_response_gives_no_call_that_had_to_wait(site: Site) -> None:
    caller = site.server.front.identity.authenticate(
        authorization=site.headers["agent"]["authorization"], api_key=None, client_host=None
    )
    path = f"/v1/responses/{site.server.front.response_ids.new(caller)}"
    engine = site.server.engine
    engine.answered = json.dumps(answer(RESPONSES)).encode()
    engine.read = _nothing
    response = await site.server.post(path, method="GET", headers=site.headers["agent"])
    assert calls_in(RESPONSES, response.json) == []
    assert "read later" in response.body.decode()
    assert site.approvals.all() == []
    engine.answered = json.dumps(answer(RESPONSES, "get_weather")).encode()
    response = await site.server.post(path, method="GET", headers=site.headers["agent"])
    assert calls_in(RESPONSES, response.json)


async def _nothing(_: Any) -> bytes:
    return b""
