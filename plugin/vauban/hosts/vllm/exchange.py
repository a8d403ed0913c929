"""One guarded request and its answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from vauban.access.scopes import ADMIN, SYSTEM_PROMPT, allows
from vauban.access.standing import Standing
from vauban.errors import Forbidden, MalformedRequest, RequestError, RequestTooLarge
from vauban.guard import Reading
from vauban.hosts.vllm.answers import Answer, blocked_answer, error_answer, refusal_answer
from vauban.hosts.vllm.channel import Report
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.gate import Gate
from vauban.hosts.vllm.output import keep_in_step
from vauban.hosts.vllm.output_stage import OutputStage
from vauban.hosts.vllm.rewrite import Rewriter
from vauban.hosts.vllm.routes import PRIORITY_HEADER, STANDING_HEADER, Kind, Route, shape_of
from vauban.hosts.vllm.serving import client_address, finish, send_answer, start, stop
from vauban.hosts.vllm.tool_gate import Turn
from vauban.hosts.vllm.tool_stage import ToolStage
from vauban.mark import RESERVED_KEY
from vauban.protocol.bodies import Body, parse_body, prompts_in
from vauban.protocol.features import check_body_features, check_fields
from vauban.protocol.owner import operator_texts
from vauban.protocol.shapes import Shape
from vauban.telemetry import Decision
from vauban.text.sanitize import Sanitizer
from vauban.types import Caller, Level, Mode, Principal, Reason, Verdict

Message = MutableMapping[str, Any]

REQUEST_ID_HEADER = "x-vauban-request-id"
_DROPPED = ("transfer-encoding", PRIORITY_HEADER)
READ_APART_BYTES = 8_192
EARLY_START_TIMEOUT_MS = 600_000
"""A streamed or background response is answered before its request has left vLLM's queue; it may
wait that long."""


class Exchange:
    """Serves one request: reads it, asks for a verdict, holds the answer until it is there.

    :raises RequestError: the body is malformed, too large, or asks for what the caller may not.
    """

    def __init__(
        self, front: Front, route: Route, path: str, principal: Principal, standing: Standing,
        request_id: str, raw: bytes,
    ) -> None:  # fmt: skip
        self._front = front
        self._route = route
        self._path = path
        self._principal = principal
        self._standing = standing
        enforced = standing.level if front.policy.response.mode is Mode.ENFORCE else Level.CLEAR
        self._degraded = enforced >= Level.DEGRADED
        self._request_id = request_id
        self._started = time.perf_counter()
        self._is_long = len(raw) > READ_APART_BYTES
        self._data = parse_body(raw)
        self.shape = shape_of(route, self._data)
        self._model = self._data.get("model") or front.default_model
        if not isinstance(self._model, str):
            raise MalformedRequest("model must be text", param="model")
        if not allows(principal.scopes, model=self._model):
            raise Forbidden("the credential does not cover this model", param="model")
        check_fields(self._data, self.shape, principal.scopes, front.policy)
        turn = Turn(principal.id, request_id, path)
        self._tools = ToolStage(front.tool_gate, self._data, self.shape, turn)
        self._front_ms = 0.0
        self._chars = self._segments = self._tokens = self._added_tokens = 0
        self._findings: tuple[tuple[str, int], ...] = ()
        self._excerpt: dict[str, Any] | None = None
        self._prompts = prompts_in(self._data)
        self._timer: asyncio.TimerHandle | None = None
        self._client_left = False
        self._output = OutputStage(front, self.shape, turn, self._tools)
        self._settle_ids()
        self._priority: int | None = None
        slow = enforced >= Level.SLOWED and route.kind is Kind.GUARDED
        if slow and front.priority_scheduling:
            self._wait_for_others()
        if principal.limit.tokens_per_min is not None and self._data.get("background"):
            raise Forbidden("background work can't be counted against this limit of tokens",
                            param="background")  # fmt: skip

    def _settle_ids(self) -> None:
        """The id of a stored response says whose it is, so it is never the caller's choice."""
        ids, previous = self._front.response_ids, self._data.get("previous_response_id")
        if previous is not None:
            ids.check(previous, self._principal, param="previous_response_id")
        if self.shape is Shape.RESPONSES:
            self._data["request_id"] = ids.new(self._principal)
        elif ADMIN not in self._principal.scopes:
            self._data.pop("request_id", None)

    def _wait_for_others(self) -> None:
        """A slowed caller's requests are scheduled after everybody else's."""
        slow = self._front.policy.response.slow_priority
        self._priority = max(self._data.get("priority") or 0, slow)
        if self.shape is not Shape.ANTHROPIC:  # it has no such field, and the header is enough
            self._data["priority"] = self._priority

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if self._route.kind is Kind.BOUNDED:
            self._reserved().pop(RESERVED_KEY, None)
            await app(*self._forward(scope, receive), send)
            return
        settled = await self._tools.settle(Headers(scope=scope), self._model)
        if settled is not None:
            await send_answer(send, settled, {REQUEST_ID_HEADER: self._request_id})
            return
        logprobs = self._front.hardening.request(self._data, self.shape, degraded=self._degraded)
        if logprobs is not None:
            self._output.editors.append(logprobs)
        # A long text takes tens of milliseconds to read; other requests go on meanwhile.
        reading = await asyncio.to_thread(self._read) if self._is_long else self._read()
        if self._route.generates:
            keep_in_step(self._data)
            self._front.owners.salt(self._data, self.shape, self._principal)
            self._output.read(self._sanitizer())
        self._front_ms = self._elapsed_ms()
        if not reading.complete and self._front.guard.judge(Reason.UNREAD_TEXT).blocked:
            await self._refuse(send, self._front.guard.judge(Reason.UNREAD_TEXT), None)
        elif self._route.generates and self._front.place == "engine":
            await self._serve_with_engine(reading, app, scope, receive, send)
        else:
            await self._serve_from_front(reading, app, scope, receive, send)

    # -- in ------------------------------------------------------------------------------------

    def _read(self) -> Reading:
        """Read, clean and frame the body in place."""
        front = self._front
        body = Body(
            self._data,
            trusted_system=allows(self._principal.scopes, feature=SYSTEM_PROMPT),
            decode=front.decode,
            max_leaves=front.policy.limits.max_segments,
        )
        check_body_features(body, self._principal.scopes, front.policy)
        segments = body.segments
        self._tools.read(segments)
        self._chars = sum(len(s.text) for s in segments if not s.origin.trusted)
        self._segments = len(segments)
        self._excerpt = front.excerpts.of(segments)
        reading = front.guard.read(segments)
        if reading.windows.tokens > front.max_guard_tokens:
            raise RequestTooLarge("the text is far longer than the model's context")
        body.put(reading.texts, front.encode)
        if any(front.guard.spells_control_token(run) for run in body.conversations()):
            raise MalformedRequest("a control token is spread over several pieces of text")
        self._added_tokens = front.framer.frame(body, self.shape)
        self._operator_texts = operator_texts(segments, front.policy.sandwich.instruction)
        self._tokens = reading.windows.tokens
        self._findings = tuple(sorted(reading.findings.items()))
        return reading

    def _caller(self, scope: Scope) -> Caller:
        proxies = self._front.policy.identity.trusted_proxies
        address = client_address(scope, proxies)
        return self._front.treatment.caller(self._principal, address, self._prompts)

    def _sanitizer(self) -> Sanitizer:
        """The rules for the answer. Where the operator has said something, a canary goes behind
        it."""
        if not self._operator_texts:
            return self._front.guard.screen_output()
        canaries = self._front.owners.place(
            self._data, self.shape, self._principal, self._request_id
        )
        return self._front.guard.screen_output(self._operator_texts, canaries)

    def _reserved(self) -> dict[str, Any]:
        """Where the mark travels in this body; made when it is not there."""
        holder, key = self._data, "vllm_xargs"
        if self.shape is Shape.TOKENS:
            holder = self._data.setdefault("sampling_params", {})
            key = "extra_args"
            if not isinstance(holder, dict):
                raise MalformedRequest("sampling_params must be an object", param="sampling_params")
        if holder.get(key) is None:
            holder[key] = {}
        if not isinstance(holder[key], dict):
            raise MalformedRequest(f"{key} must be an object", param=key)
        found: dict[str, Any] = holder[key]
        return found

    def _forward(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """The scope and the receive that give the application the rewritten body."""
        raw = json.dumps(self._data).encode()
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers["content-length"] = str(len(raw))
        # The adapter header would change the model after the scope check, and the one for priority
        # would be taken for the field that is checked.
        for name in [*headers]:
            if name in _DROPPED or name.startswith("x-amzn-sagemaker-"):
                del headers[name]
        if self._priority is not None:
            headers[PRIORITY_HEADER] = str(self._priority)
        given = False

        async def receive_body() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": raw, "more_body": False}
            message = await receive()
            self._client_left = self._client_left or message["type"] == "http.disconnect"
            return message

        return {**scope, "headers": headers.raw}, receive_body

    # -- the two ways to a verdict ---------------------------------------------------------------

    async def _serve_from_front(
        self, reading: Reading, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Screen here, then pass on: pooling models, and hosts without logits processors."""
        report = None
        verdict = self._front.guard.judge(Reason.OFF)
        if self._front.policy.encodes:
            report = await self._front.screen_here(reading.windows, self._caller(scope))
            self._front.learn(self._principal, report.evidence)
            verdict = self._judge(report)
        if verdict.blocked:
            await self._refuse(send, verdict, report)
            return
        if self._route.generates:
            self._reserved()[RESERVED_KEY] = self._front.pass_mark()
        rewriter = self._rewriter(send)
        gate = Gate(rewriter.send, self._principal, self._front.identity)
        await gate.open(self._headers(verdict, self._record(verdict, report)))
        serving = start(rewriter, app, *self._forward(scope, receive), gate.send)
        try:
            await finish(serving, rewriter)
        finally:
            await stop(serving)
            self._end(gate)

    async def _serve_with_engine(
        self, reading: Reading, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Pass on with a mark, and hold the answer until the engine half has reported."""
        front = self._front
        reserved = self._reserved()  # may refuse, so before anything is registered
        reserved[RESERVED_KEY], nonce, reported = front.ask_engine(
            reading.windows, self._caller(scope)
        )
        rewriter = self._rewriter(send)
        gate = Gate(
            rewriter.send,
            self._principal,
            front.identity,
            on_body=lambda: self._limit(reported),
        )
        serving = start(rewriter, app, *self._forward(scope, receive), gate.send)
        self._front_ms = self._elapsed_ms()
        try:
            waiting: set[asyncio.Future[Any]] = {serving, reported}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # vLLM also ends its work for a client that left with an answer, of `null`; no verdict
            # will come for that, and waiting for it would hold a place among those in flight.
            if reported.done() or (gate.complete and not self._client_left):
                if not reported.done():
                    self._limit(reported)
                report = await reported
                front.learn(self._principal, report.evidence)
                verdict = self._judge(report)
                if verdict.blocked and not gate.is_open:
                    gate.drop()
                    decision = self._record(verdict, report)
                    await stop(serving)  # vLLM aborts the request and frees its KV cache
                    await self._answer_blocked(send, verdict, decision)
                    return
                decision = self._record(verdict, report, gate.held_ms())
                if not gate.is_open:
                    await gate.open(self._headers(verdict, decision))
            # Without a verdict and a whole answer there is nothing to send: the client left, the
            # application failed, or an error answer of its own has passed.
            await finish(serving, rewriter)
        finally:
            front.forget(nonce)
            reported.cancel()
            if self._timer is not None:
                self._timer.cancel()
            await stop(serving)
            self._end(gate)

    def _end(self, gate: Gate) -> None:
        gate.charge(self._tokens)
        self._output.record()

    def _rewriter(self, send: Send) -> Rewriter:
        def failed(error: RequestError) -> Answer:
            self._front.record_refusal(error, self._path, self._request_id)
            return error_answer(error, self.shape, self._request_id)

        return self._output.rewriter(send, failed)

    def _limit(self, reported: asyncio.Future[Report]) -> None:
        """The engine has begun to answer, so its verdict must be near: a lost one is a failure."""
        timeout_ms = self._front.policy.encoder.timeout_ms
        early = self._data.get("stream") or self._data.get("background")
        if self.shape is Shape.RESPONSES and early:
            timeout_ms = max(timeout_ms, EARLY_START_TIMEOUT_MS)

        def give_up() -> None:
            if not reported.done():
                reported.set_result(Report(b"", None, Reason.SCREEN_TIMEOUT, 0, 0.0, 0.0))

        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(timeout_ms / 1000, give_up)

    # -- out -------------------------------------------------------------------------------------

    def _judge(self, report: Report) -> Verdict:
        if report.failure is not None or report.score is None:
            return self._front.guard.judge(report.failure or Reason.SCREEN_FAILED)
        return self._front.guard.judge(report.score)

    async def _refuse(self, send: Send, verdict: Verdict, report: Report | None) -> None:
        await self._answer_blocked(send, verdict, self._record(verdict, report))

    async def _answer_blocked(self, send: Send, verdict: Verdict, decision: Decision) -> None:
        policy = self._front.policy.answer
        answer = None
        if policy.blocked == "refusal":
            answer = refusal_answer(
                self.shape,
                policy.refusal,
                self._request_id,
                model=str(self._model),
                stream=self._data.get("stream") is True,
            )
        answer = answer or blocked_answer(self.shape, verdict.reason, self._request_id)
        await send_answer(send, answer, self._headers(verdict, decision))

    def _headers(self, verdict: Verdict, decision: Decision) -> dict[str, str]:
        """What a client is told besides the answer."""
        headers = {REQUEST_ID_HEADER: self._request_id}
        policy = self._front.policy
        if policy.answer.details or policy.injection.mode is Mode.MONITOR:
            headers["x-vauban-verdict"] = decision.proposed
            headers["x-vauban-reason"] = decision.reason
        if policy.answer.details or policy.response.mode is Mode.MONITOR:
            headers[STANDING_HEADER] = decision.standing
        if policy.answer.details:
            headers["x-vauban-score"] = f"{verdict.score:.4f}"
            headers["x-vauban-added-ms"] = f"{decision.added_ms:.2f}"
            headers["x-vauban-added-tokens"] = str(self._added_tokens)
            headers["x-vauban-policy"] = self._front.digest
        return headers

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000

    def _record(self, verdict: Verdict, report: Report | None, hold_ms: float = 0.0) -> Decision:
        decision = Decision(
            request_id=self._request_id,
            principal=self._principal.id,
            route=self._path,
            action=verdict.action.name.lower(),
            proposed=verdict.proposed.name.lower(),
            reason=verdict.reason.value,
            policy=self._front.digest,
            standing=self._standing.level.name.lower(),
            score=report.score if report else None,
            chars=self._chars,
            segments=self._segments,
            tokens=self._tokens,
            batch=report.batch if report else 0,
            front_ms=self._front_ms,
            hold_ms=hold_ms,
            queue_ms=report.queue_ms if report else 0.0,
            encode_ms=report.encode_ms if report else 0.0,
            findings=self._findings,
        )
        self._front.record(decision, self._excerpt)
        return decision
