"""The front half around a five-line application: who gets in, what goes through, what stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vauban.access.keyfile import add_key
from vauban.hosts.vllm.middleware import GuardMiddleware
from vauban.hosts.vllm.routes import REFUSED, Kind, Route
from vauban.types import RateLimit

CHAT = "/v1/chat/completions"
TOKENS = "/inference/v1/generate"
GOOD = {"model": "standin", "messages": [{"role": "user", "content": "a plain question"}]}
BAD = {"model": "standin", "messages": [{"role": "user", "content": "a volcano in here"}]}
MakeServer = Callable[..., Any]


@pytest.fixture(params=["engine", "front"])
async def anywhere(request: pytest.FixtureRequest, make_server: MakeServer) -> Any:
    """The encoder in the engine, and in the front: the same answers."""
    return make_server(place=request.param)


# -- verdicts ----------------------------------------------------------------------------------


async def test_an_ordinary_request_passes_unharmed(anywhere: Any) -> None:
    response = await anywhere.post(CHAT, GOOD)
    assert response.status == 200
    assert response.body == b'{"said": "the model\'s words"}'
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-vauban-request-id"]
    assert "x-vauban-score" not in response.headers
    (body,) = anywhere.engine.bodies
    assert {k: v for k, v in body.items() if k not in ("vllm_xargs", "cache_salt")} == GOOD
    (scope,) = anywhere.engine.scopes
    assert dict(scope["headers"])[b"content-length"] == str(len(json.dumps(body))).encode()


async def test_an_injection_is_blocked_and_nothing_leaves(anywhere: Any) -> None:
    response = await anywhere.post(CHAT, BAD)
    assert response.status == 400
    assert response.complete
    error = response.json["error"]
    assert error["code"] == "content_filter"
    assert error["reason"] == "prompt_injection"
    assert error["request_id"] == response.headers["x-vauban-request-id"]
    assert b"words" not in response.body
    assert b"volcano" not in response.body


async def test_with_the_encoder_in_front_the_engine_never_sees_a_blocked_request(
    make_server: MakeServer,
) -> None:
    server = make_server(place="front")
    await server.post(CHAT, BAD)
    assert server.engine.bodies == []
    await server.post(CHAT, GOOD)
    (mark,) = server.engine.marks
    assert mark.order.name == "PASS"


async def test_a_blocked_request_is_cancelled_in_the_engine(server: Any) -> None:
    never = asyncio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await never.wait()
        finally:  # what an application still says while it is being cancelled
            await send({"type": "http.response.body", "body": b"leak", "more_body": True})

    server.engine.answer = answer
    response = await server.post(CHAT, {**BAD, "stream": True})
    assert response.status == 400
    assert b"leak" not in response.body
    assert server.engine.cancelled == 1


async def test_an_error_said_while_being_cancelled_is_not_a_second_answer(server: Any) -> None:
    never = asyncio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        try:
            await never.wait()
        except asyncio.CancelledError:
            await send({"type": "http.response.start", "status": 499, "headers": []})
            await send({"type": "http.response.body", "body": b"gone"})
            raise

    server.engine.answer = answer
    response = await server.post(CHAT, BAD)
    assert response.status == 400
    assert response.json["error"]["code"] == "content_filter"


async def test_an_answer_waits_for_its_verdict(server: Any) -> None:
    server.engine.report = False
    said = asyncio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await server.engine.say(scope, receive, send)
        said.set()

    server.engine.answer = answer
    asking = asyncio.create_task(server.post(CHAT, GOOD))
    await asyncio.wait_for(said.wait(), 10)
    await asyncio.sleep(0.02)
    assert not asking.done()
    server.engine.screen(server.engine.bodies[0])
    assert (await asking).status == 200


async def test_a_verdict_that_never_comes_is_a_failure(make_server: MakeServer) -> None:
    server = make_server(encoder={"timeout_ms": 30})
    server.engine.report = False
    response = await server.post(CHAT, GOOD)
    assert response.status == 400
    assert response.json["error"]["reason"] == "screen_timeout"
    allowing = make_server(encoder={"timeout_ms": 30}, injection={"on_failure": "allow"})
    allowing.engine.report = False
    assert (await allowing.post(CHAT, GOOD)).status == 200


async def test_an_encoder_that_dies_blocks(anywhere: Any, fake_encoder: Any) -> None:
    fake_encoder.fail = RuntimeError("out of memory")
    response = await anywhere.post(CHAT, GOOD)
    assert response.status == 400
    assert response.json["error"]["reason"] == "screen_failed"


async def test_an_encoder_that_hangs_blocks(make_server: MakeServer) -> None:
    server = make_server(place="front", encoder={"timeout_ms": 30})

    class Hanging:
        def submit(self, batch: Any, callers: object = ()) -> Any:
            from concurrent.futures import Future

            return [Future() for _ in batch]

    server.front._queue = Hanging()
    response = await server.post(CHAT, GOOD)
    assert response.json["error"]["reason"] == "screen_timeout"


async def test_text_that_could_not_be_read_blocks(make_server: MakeServer) -> None:
    import base64

    server = make_server(normalize={"max_decoded_chars": 8})
    hidden = base64.b64encode(b"please read all of these hidden words carefully").decode()
    body = {"messages": [{"role": "user", "content": hidden}]}
    response = await server.post(CHAT, body)
    assert response.json["error"]["reason"] == "unread_text"
    assert server.engine.bodies == []


@pytest.mark.parametrize("place", ["engine", "front"])
async def test_monitor_blocks_nothing_and_tells(make_server: MakeServer, place: str) -> None:
    server = make_server(place=place, injection={"mode": "monitor"})
    response = await server.post(CHAT, BAD)
    assert response.status == 200
    assert response.headers["x-vauban-verdict"] == "block"
    assert response.headers["x-vauban-reason"] == "prompt_injection"


async def test_off_screens_nothing(make_server: MakeServer, fake_encoder: Any) -> None:
    off = {"mode": "off"}
    server = make_server(place="front", injection=off, extraction=off)
    assert (await server.post(CHAT, BAD)).status == 200
    assert fake_encoder.batches == []
    # The extraction detector needs the encoder's embedding, whatever is done with its score.
    server = make_server(place="front", injection=off)
    assert (await server.post(CHAT, BAD)).status == 200
    assert len(fake_encoder.batches) == 1


async def test_details_are_told_only_when_asked(make_server: MakeServer) -> None:
    server = make_server(answer={"details": True})
    response = await server.post(CHAT, BAD)
    assert response.headers["x-vauban-score"] == "0.9990"
    assert response.headers["x-vauban-policy"] == server.front.policy.digest
    assert float(response.headers["x-vauban-added-ms"]) > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, BAD),
        ("/v1/completions", {"prompt": "a volcano"}),
        ("/v1/responses", {"input": "a volcano"}),
        ("/v1/messages", {"messages": BAD["messages"], "max_tokens": 5}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_an_ordinary_answer(
    make_server: MakeServer, path: str, body: dict[str, Any], stream: bool
) -> None:
    server = make_server(answer={"blocked": "refusal", "refusal": "No, thank you."})
    response = await server.post(path, {**body, "stream": stream})
    assert response.status == 200
    assert b"No, thank you." in response.body
    kind = "text/event-stream" if stream else "application/json"
    assert response.headers["content-type"].startswith(kind)


async def test_a_protocol_without_a_refusal_gets_the_error(make_server: MakeServer) -> None:
    server = make_server(answer={"blocked": "refusal"})
    ids = [ord(letter) for letter in "a volcano"]
    response = await server.post(TOKENS, {"token_ids": ids, "sampling_params": {}})
    assert response.status == 400


# -- the mark ----------------------------------------------------------------------------------


@pytest.mark.parametrize("forged", ["forged", "", 5, ["x"], None, {"a": "b"}])
async def test_what_a_client_puts_under_the_reserved_key_is_replaced(
    server: Any, forged: Any
) -> None:
    body = {**GOOD, "vllm_xargs": {"vauban": forged, "other": 3}}
    assert (await server.post(CHAT, body)).status == 200
    (sent,) = server.engine.bodies
    assert sent["vllm_xargs"]["other"] == 3
    assert server.engine.marks[0] is not None
    assert sent["vllm_xargs"]["vauban"] != forged


async def test_a_mark_is_never_used_twice(server: Any) -> None:
    await server.post(CHAT, GOOD)
    mark = server.engine.bodies[0]["vllm_xargs"]["vauban"]
    await server.post(CHAT, {**BAD, "vllm_xargs": {"vauban": mark}})
    assert server.engine.bodies[1]["vllm_xargs"]["vauban"] != mark


@pytest.mark.parametrize("broken", ["text", ["vauban"], 5])
async def test_a_holder_that_is_no_object_is_refused(server: Any, broken: Any) -> None:
    assert (await server.post(CHAT, {**GOOD, "vllm_xargs": broken})).status == 400
    ids = {"token_ids": [65]}
    assert (await server.post(TOKENS, {**ids, "sampling_params": broken})).status == 400
    sampling = {"sampling_params": {"extra_args": broken}}
    assert (await server.post(TOKENS, {**ids, **sampling})).status == 400
    assert server.engine.bodies == []


async def test_the_mark_of_token_requests_is_in_their_sampling_parameters(server: Any) -> None:
    sampling = {"extra_args": {"vauban": "forged"}, "max_tokens": 3}
    body = {"token_ids": [65, 66], "sampling_params": sampling}
    assert (await server.post(TOKENS, body)).status == 200
    (sent,) = server.engine.bodies
    assert sent["sampling_params"]["max_tokens"] == 3
    assert server.engine.marks[0] is not None


async def test_counting_routes_carry_no_mark(server: Any) -> None:
    body = {**GOOD, "vllm_xargs": {"vauban": "forged"}}
    assert (await server.post("/tokenize", body)).status == 200
    assert server.engine.bodies[0]["vllm_xargs"] == {}


# -- routes and bodies ---------------------------------------------------------------------------


UNKNOWN = [
    "/",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/v1/Chat/completions",
    "/v1/unheard",
    "/v1/chat/completions/../completions",
    "/sleep",
    "/collective_rpc",
]


@pytest.mark.parametrize("path", UNKNOWN)
async def test_a_route_that_the_table_does_not_know_is_refused(server: Any, path: str) -> None:
    response = await server.post(path, GOOD)
    assert response.status == 404
    assert response.json["error"]["code"] == "route_refused"
    assert server.engine.scopes == []


async def test_refused_routes_stay_shut(server: Any) -> None:
    for method, path in REFUSED:
        assert (await server.post(path, GOOD, method=method)).status == 404
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "post"):
        assert (await server.post(CHAT, GOOD, method=method)).status == 404
    assert server.engine.scopes == []


async def test_docs_are_shut_unless_opened(make_server: MakeServer) -> None:
    assert (await make_server().post("/docs", method="GET")).status == 404
    assert (await make_server(routes={"docs": True}).post("/docs", method="GET")).status == 200


async def test_a_root_path_is_taken_off(server: Any) -> None:
    scope_path = f"/api{CHAT}"
    assert (await server.post(scope_path, GOOD)).status == 404
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(BAD).encode()}

    scope = {"type": "http", "method": "POST", "path": scope_path, "root_path": "/api",
             "headers": [], "client": None}  # fmt: skip
    await server.app(scope, receive, send)
    assert sent[0]["status"] == 400


async def test_a_preflight_of_an_open_route_passes(server: Any) -> None:
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert (await server.post(CHAT, method="OPTIONS", headers=asks)).status == 200
    assert (await server.post(CHAT, method="OPTIONS")).status == 404
    assert (await server.post("/sleep", method="OPTIONS", headers=asks)).status == 404


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b'"text"', b"5", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000,
     b'{"messages": 1' + b"0" * 5000 + b"}"],
    ids=lambda raw: repr(raw[:12]),
)  # fmt: skip
async def test_what_is_no_json_object_is_refused(server: Any, raw: bytes) -> None:
    response = await server.post(CHAT, raw=raw)
    assert response.status == 400
    assert response.json["error"]["code"] == "malformed_request"
    assert server.engine.scopes == []


@pytest.mark.parametrize("field", ["metadata", "messages", "tools", "x"])
async def test_deep_nesting_is_refused_not_a_crash(server: Any, field: str) -> None:
    for depth in (60, 500, 900, 990):
        nested = b"[" * depth + b"]" * depth
        raw = b'{"messages": [{"role": "user", "content": "hi"}], "%s": ' % field.encode()
        response = await server.post(CHAT, raw=raw + nested + b"}")
        assert response.status == 400 or (field == "metadata" and response.status == 200)


async def test_a_declared_length_over_the_limit_is_refused_unread(make_server: MakeServer) -> None:
    server = make_server(limits={"max_body_bytes": 1024})
    response = await server.post(CHAT, then=[], headers={"content-length": "1025"})
    assert response.status == 413
    assert response.json["error"]["code"] == "request_too_large"


async def test_an_undeclared_length_over_the_limit_is_refused(make_server: MakeServer) -> None:
    server = make_server(limits={"max_body_bytes": 1024})
    endless = [b"x" * 600] * 5
    for headers in ({}, {"content-length": "10"}, {"content-length": "x"}):
        assert (await server.post(CHAT, chunks=endless, headers=headers)).status == 413
    assert server.engine.scopes == []


async def test_a_body_in_pieces_is_put_together(server: Any) -> None:
    raw = json.dumps(BAD).encode()
    pieces = [raw[n : n + 7] for n in range(0, len(raw), 7)]
    assert (await server.post(CHAT, chunks=pieces)).status == 400
    assert server.engine.marks[0] is not None


async def test_too_much_text_is_refused(make_server: MakeServer) -> None:
    server = make_server(limits={"max_text_chars": 300})
    body = {"messages": [{"role": "user", "content": "x" * 301}]}
    assert (await server.post(CHAT, body)).status == 413


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip"])
async def test_compressed_bodies_are_refused(server: Any, encoding: str) -> None:
    response = await server.post(CHAT, GOOD, headers={"content-encoding": encoding})
    assert response.status == 400
    assert server.engine.scopes == []


async def test_a_chunked_body_is_passed_on_with_its_length(server: Any) -> None:
    await server.post(CHAT, GOOD, headers={"transfer-encoding": "chunked"})
    headers = dict(server.engine.scopes[0]["headers"])
    assert b"transfer-encoding" not in headers
    assert b"content-length" in headers


# -- clients that leave, applications that fail ----------------------------------------------------


async def test_a_client_that_leaves_while_sending(server: Any) -> None:
    then = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    await server.post(CHAT, then=then)
    assert server.engine.scopes == []
    assert server.front.in_flight == 0


async def test_a_client_that_leaves_before_the_engine_has_looked(server: Any) -> None:
    """A stream starts before its request is scheduled; aborted there, no verdict ever comes."""
    server.engine.report = False
    leave = asyncio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leave.set()
        assert (await receive())["type"] == "http.disconnect"

    server.engine.answer = answer
    response = await server.post(CHAT, {**GOOD, "stream": True}, leave=leave)
    assert response.messages == []
    assert server.front.in_flight == 0


async def test_an_answer_to_a_client_that_left_is_not_waited_for(server: Any) -> None:
    """vLLM aborts the request and then answers `null`."""
    server.engine.report = False
    server.engine.answered = b"null"
    leave = asyncio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        leave.set()
        assert (await receive())["type"] == "http.disconnect"
        await server.engine.say(scope, receive, send)

    server.engine.answer = answer
    response = await server.post(CHAT, GOOD, leave=leave)
    assert response.messages == []
    assert server.front.in_flight == 0


@pytest.mark.parametrize("started", [False, True])
async def test_an_application_that_fails_before_a_verdict(server: Any, started: bool) -> None:
    server.engine.report = False

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("engine died")

    server.engine.answer = answer
    with pytest.raises(RuntimeError, match="engine died"):
        await server.post(CHAT, GOOD)
    assert server.front.in_flight == 0


async def test_an_application_that_fails_after_its_verdict(server: Any) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.02)
        raise RuntimeError("engine died")

    server.engine.answer = answer
    with pytest.raises(RuntimeError, match="engine died"):
        await server.post(CHAT, GOOD)


async def test_an_error_of_the_server_passes_at_once(server: Any) -> None:
    server.engine.report = False

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 422, "headers": []})
        await send({"type": "http.response.body", "body": b"not so"})

    server.engine.answer = answer
    response = await server.post(CHAT, GOOD)
    assert (response.status, response.body) == (422, b"not so")


async def test_an_error_answer_and_a_late_block_are_one_answer(server: Any) -> None:
    """A batch whose first prompt was screened when its second turned out to be too long."""
    server.engine.report = False

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        server.engine.screen(server.engine.bodies[0])
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"too long"})

    server.engine.answer = answer
    response = await server.post(CHAT, BAD)
    assert (response.status, response.body) == (400, b"too long")


async def test_a_slot_is_given_back(make_server: MakeServer) -> None:
    server = make_server(limits={"max_in_flight": 1})
    arrived, gate = asyncio.Event(), asyncio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        arrived.set()
        await gate.wait()
        await server.engine.say(scope, receive, send)

    server.engine.answer = answer
    first = asyncio.create_task(server.post(CHAT, GOOD))
    await arrived.wait()
    refused = await server.post(CHAT, GOOD)
    assert refused.status == 503
    assert refused.json["error"]["code"] == "overloaded"
    gate.set()
    assert (await first).status == 200
    assert (await server.post(CHAT, GOOD)).status == 200


async def test_sixteen_at_once_get_their_own_verdicts(anywhere: Any) -> None:
    bodies = [BAD if n % 3 == 0 else GOOD for n in range(16)]
    responses = await asyncio.gather(*(anywhere.post(CHAT, body) for body in bodies))
    assert [r.status for r in responses] == [400 if n % 3 == 0 else 200 for n in range(16)]


# -- identity ------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Callable[..., str]:
    def add(name: str, *scopes: str, limit: RateLimit | None = None) -> str:
        now = datetime.now(UTC)
        key, _ = add_key(
            tmp_path / "keys.json", name, scopes or ("*",), created=now,
            expires=now + timedelta(days=1), limit=limit or RateLimit(),
        )  # fmt: skip
        return key.text

    return add


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_no_key_no_service(make_server: MakeServer, keys: Any, tmp_path: Path) -> None:
    key = keys("a")
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    for headers in ({}, bearer(key[:-1] + ("a" if key[-1] != "a" else "b")), bearer("sk-x"),
                    {"authorization": "Basic x"}, {"authorization": key}):  # fmt: skip
        response = await server.post(CHAT, GOOD, headers=headers)
        assert response.status == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json["error"]["code"] == "invalid_api_key"
    assert server.engine.scopes == []
    assert (await server.post(CHAT, GOOD, headers=bearer(key))).status == 200
    assert (await server.post(CHAT, GOOD, headers={"x-api-key": key})).status == 200
    assert (await server.post("/health", method="GET")).status == 200
    assert (await server.post("/metrics", method="GET")).status == 401
    assert (await server.post("/v1/models", method="GET")).status == 401


async def test_an_unauthenticated_body_is_not_read(
    make_server: MakeServer, keys: Any, tmp_path: Path
) -> None:
    keys("a")
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    assert (await server.post(CHAT, then=[])).status == 401


async def test_scopes(make_server: MakeServer, keys: Any, tmp_path: Path) -> None:
    chat = bearer(keys("a", "chat", "model:standin"))
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    assert (await server.post(CHAT, GOOD, headers=chat)).status == 200
    assert (await server.post(CHAT, {"messages": []}, headers=chat)).status == 200  # the default
    for path, body in [
        ("/v1/completions", {"prompt": "x"}),
        (CHAT, {**GOOD, "model": "other"}),
        (CHAT, {**GOOD, "logprobs": True}),
        (CHAT, {**GOOD, "tools": [{"type": "function"}]}),
        (CHAT, {**GOOD, "response_format": {"type": "json_object"}}),
        (CHAT, {**GOOD, "kv_transfer_params": {"a": 1}}),
    ]:
        response = await server.post(path, body, headers=chat)
        assert response.status == 403, body
        assert response.json["error"]["code"] == "insufficient_scope"
    assert len(server.engine.bodies) == 2


async def test_rate_limits(make_server: MakeServer, keys: Any, tmp_path: Path) -> None:
    key = bearer(keys("a", limit=RateLimit(requests_per_min=2)))
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    assert [(await server.post(CHAT, GOOD, headers=key)).status for _ in range(2)] == [200, 200]
    response = await server.post(CHAT, GOOD, headers=key)
    assert response.status == 429
    assert int(response.headers["retry-after"]) >= 1


async def test_tokens_are_charged(make_server: MakeServer, keys: Any, tmp_path: Path) -> None:
    key = bearer(keys("a", limit=RateLimit(tokens_per_min=50)))
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    server.engine.answered = b'{"usage": {"total_tokens": 60}}'
    assert (await server.post(CHAT, GOOD, headers=key)).status == 200
    assert (await server.post(CHAT, GOOD, headers=key)).status == 429


# -- installation --------------------------------------------------------------------------------


async def test_websockets_are_closed(server: Any) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    await server.app({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert [m["type"] for m in sent] == ["websocket.close"]
    assert server.engine.scopes == []


async def test_installed_twice_the_inner_one_steps_aside(server: Any) -> None:
    server.app = GuardMiddleware(server.app, front=server.front)
    assert (await server.post(CHAT, GOOD)).status == 200
    assert (await server.post(CHAT, BAD)).status == 400
    assert len(server.engine.marks) == 2


def test_every_guarded_route_has_a_scope() -> None:
    from vauban.access.scopes import ROUTE_GROUPS
    from vauban.hosts.vllm.routes import _TABLE

    for key, route in _TABLE.items():
        assert isinstance(route, Route)
        assert route.group in ROUTE_GROUPS or (route.group is None and route.kind is Kind.PASSED)
        assert key not in REFUSED


# -- nothing private is logged ---------------------------------------------------------------------


async def test_no_text_and_no_key_in_audit_logs_and_metrics(
    make_server: MakeServer, keys: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    key = keys("a")
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    secret = "SENTINELTEXT"
    bodies: list[Any] = [
        {"messages": [{"role": "user", "content": f"{secret} question"}]},
        {"messages": [{"role": "user", "content": f"{secret} volcano"}]},
        {"messages": [{"role": secret, "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": secret, "x": secret}]},
        {"messages": 5, "model": {"a": secret}},
        {"messages": [{"role": "user", "content": "x"}], "vllm_xargs": {"vauban": secret}},
        {secret: secret},
    ]
    with caplog.at_level(0):
        for body in bodies:
            for headers in (bearer(key), bearer(secret), {"x-api-key": secret}):
                response = await server.post(CHAT, body, headers=headers)
                if response.status != 200:
                    assert secret.encode() not in response.body
    registry = CollectorRegistry()
    for metric in vars(server.front.metrics).values():
        registry.register(metric)
    written = (tmp_path / "audit.log").read_text() + caplog.text
    written += generate_latest(registry).decode()
    assert "decision" in written
    for private in (secret, secret.lower(), key, key[-20:]):
        assert private not in written


# -- log-probabilities ---------------------------------------------------------------------------

ENTRY = {"token": "z", "logprob": -7.0, "top_logprobs": [{"token": "a", "logprob": -0.123456}]}


@pytest.mark.parametrize("place", ["engine", "front"])
async def test_logprobs_are_asked_for_and_trimmed(make_server: MakeServer, place: str) -> None:
    server = make_server(place=place)
    answer = {"choices": [{"index": 0, "logprobs": {"content": [dict(ENTRY)]}}]}
    server.engine.answered = json.dumps(answer).encode()
    response = await server.post(CHAT, {**GOOD, "logprobs": True, "top_logprobs": 20})
    assert server.engine.bodies[-1]["top_logprobs"] == 6
    (entry,) = response.json["choices"][0]["logprobs"]["content"]
    assert (entry["logprob"], entry["top_logprobs"]) == (
        -9999.0,
        [{"token": "a", "logprob": -0.12}],
    )
    assert response.headers["content-length"] == str(len(response.body))
    assert response.headers["x-vauban-request-id"]


async def test_logprobs_and_bias_are_refused_together(make_server: MakeServer) -> None:
    server = make_server()
    for path, body in [
        (CHAT, {**GOOD, "logprobs": True, "logit_bias": {"5": 100}}),
        ("/v1/completions", {"prompt": "x", "logprobs": 1, "allowed_token_ids": [5]}),
        ("/invocations", {"prompt": "x", "logprobs": 1, "allowed_token_ids": [5]}),
        ("/v1/completions", {"prompt": "x", "prompt_logprobs": 0}),
        (TOKENS, {"token_ids": [120], "sampling_params": {"logprobs": 1, "logit_bias": {"5": 1}}}),
    ]:
        response = await server.post(path, body)
        assert response.status == 400, path
        assert response.json["error"]["code"] == "malformed_request"
    assert server.engine.bodies == []


async def test_an_answer_that_cannot_be_read_stops_the_engine(make_server: MakeServer) -> None:
    server = make_server()

    async def nonsense(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": False})
        await asyncio.sleep(60)

    server.engine.answer = nonsense
    response = await server.post(CHAT, {**GOOD, "logprobs": True})
    assert response.status == 502
    assert response.json["error"]["code"] == "unreadable_answer"
    assert server.engine.cancelled == 1
    assert server.front.in_flight == 0


# -- what the model says -------------------------------------------------------------------------

KEY = "AKIA" + "Q3EGRSEX7PLMNBVC"
INSTRUCTION = "Answer as the library does, and never tell where the key of the back door is hung."


async def stream(send: Any, texts: list[str], wait: asyncio.Event | None = None) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for text in texts:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        data = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": data, "more_body": True})
        await asyncio.sleep(0)
    if wait is not None:
        await wait.wait()
    end = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    end += b"data: [DONE]\n\n"
    await send({"type": "http.response.body", "body": end, "more_body": False})


def spoken(body: bytes) -> tuple[str, list[str]]:
    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, [c["finish_reason"] for c in choices if c["finish_reason"]]


async def test_a_secret_does_not_leave(anywhere: Any, tmp_path: Path) -> None:
    answer = {"choices": [{"index": 0, "message": {"content": f"it is {KEY} there"}}]}
    anywhere.engine.answered = json.dumps(answer).encode()
    response = await anywhere.post(CHAT, GOOD)
    said = response.json["choices"][0]["message"]["content"]
    assert said == "it is [redacted: secrets] there"

    async def speak(scope: Any, receive: Any, send: Any) -> None:
        await stream(send, ["it is ", KEY[:5], KEY[5:], " there"])

    anywhere.engine.answer = speak
    response = await anywhere.post(CHAT, {**GOOD, "stream": True})
    assert spoken(response.body) == ("it is [redacted: secrets] there", ["stop"])
    assert response.body.endswith(b"data: [DONE]\n\n")
    count = anywhere.front.metrics.output.labels("secrets", "redact")._value.get()
    assert count == 2
    audit = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    found = [row for row in audit if row["event"] == "output"]
    assert [row["findings"] for row in found] == [{"secrets.redact": 1}] * 2
    assert KEY not in (tmp_path / "audit.log").read_text()


async def test_a_canary_stops_the_engine(make_server: MakeServer) -> None:
    for place in ("engine", "front"):
        server = make_server(place=place, framed=True, sandwich={"instruction": INSTRUCTION})
        placed: list[str] = []

        async def speak(
            scope: Any, receive: Any, send: Any, server: Any = server, placed: Any = placed
        ) -> None:
            text = json.dumps(server.engine.bodies[-1])
            placed.append(text.partition("[ref ")[2].partition("]")[0])
            await stream(send, ["so: ", placed[0], " and more"], asyncio.Event())

        server.engine.answer = speak
        response = await server.post(CHAT, {**GOOD, "stream": True})
        assert len(placed[0]) == 16
        assert spoken(response.body) == ("so: ", ["content_filter"])
        assert response.complete
        assert server.engine.cancelled == 1
        assert server.front.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_the_canary_is_not_repeated_to_the_caller(
    make_server: MakeServer, stream: bool
) -> None:
    """vLLM's answer repeats the instructions that it got."""
    server = make_server(identity={"anonymous_scopes": ["*", "prompt:system"]})
    given = "Serve the harbour office."

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        told = server.engine.bodies[-1]["instructions"]
        response = {"id": "resp_1", "instructions": told, "output": [], "status": "completed"}
        body, kind = json.dumps(response).encode(), b"application/json"
        if stream:
            kind = b"text/event-stream"
            body = b"".join(
                b"data: " + json.dumps({"type": f"response.{name}", "response": response,
                                        "sequence_number": n}).encode() + b"\n\n"
                for n, name in enumerate(("created", "in_progress", "completed"))
            )  # fmt: skip
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-type", kind)]})  # fmt: skip
        await send({"type": "http.response.body", "body": body, "more_body": False})

    server.engine.answer = answer
    body = {"model": "standin", "input": "Hello", "instructions": given, "stream": stream}
    response = await server.post("/v1/responses", body)
    assert response.status == 200
    assert "[ref " in server.engine.bodies[-1]["instructions"]
    assert "[ref " not in response.body.decode()
    assert response.body.decode().count(given) == (3 if stream else 1)


@pytest.mark.parametrize("canary", ["identity", "off"])
async def test_the_operators_words_do_not_leave(make_server: MakeServer, canary: str) -> None:
    server = make_server(
        framed=True,
        sandwich={"instruction": INSTRUCTION},
        output={"prompt_words": 10, "place_canary": canary},
    )
    answer = {"choices": [{"index": 0, "message": {"content": f"I heard: {INSTRUCTION} Yes."}}]}
    server.engine.answered = json.dumps(answer).encode()
    response = await server.post(CHAT, GOOD)
    said = response.json["choices"][0]["message"]["content"]
    assert said == "I heard: [redacted: prompt] Yes."


async def test_everybody_has_a_salt_of_their_own(
    make_server: MakeServer, keys: Any, tmp_path: Path
) -> None:
    one, other = bearer(keys("a")), bearer(keys("b"))
    server = make_server(identity={"keys_file": str(tmp_path / "keys.json")})
    for path, body in [
        (CHAT, GOOD),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {**GOOD, "max_tokens": 5}),
        (TOKENS, {"token_ids": [120], "sampling_params": {}}),
        ("/invocations", {"prompt": "x"}),
    ]:
        salts = []
        for headers, own in [(one, None), (one, None), (one, "x"), (other, None), (other, "x")]:
            given = body if own is None else {**body, "cache_salt": own}
            assert (await server.post(path, given, headers=headers)).status == 200
            salts.append(server.engine.bodies[-1]["cache_salt"])
        assert salts[0] == salts[1]
        assert len(set(salts)) == 4
        assert "x" not in salts


def test_a_stored_stream_is_read_from_its_start() -> None:
    from vauban.hosts.vllm.middleware import _from_the_start

    assert _from_the_start(b"stream=true&starting_after=7&include=x&starting_after=9") == (
        b"stream=true&include=x"
    )
    assert _from_the_start(b"starting%5fafter=7") == b""
    assert _from_the_start(b"") == b""
