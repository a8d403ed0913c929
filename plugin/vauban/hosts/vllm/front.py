"""What the front half of one API server process has: settings, guard, identity, and the way to
the encoder. Opened when the server starts up; a wrong setting stops the start."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vauban.access.approval import Approvals, Step
from vauban.access.approval_place import deployment_of, open_place
from vauban.access.identity import Identity, require_safe_bind
from vauban.access.ledger import Ledger
from vauban.access.receipt import Receipts
from vauban.access.standing import Standing, Transition
from vauban.access.tool_rules import ToolRules
from vauban.detectors.windows import Windows
from vauban.errors import ConfigError, RequestError, StateUnavailable
from vauban.guard import Guard
from vauban.hosts.vllm.channel import Report, ReportReceiver, announced_engines
from vauban.hosts.vllm.routes import Kind, Route, RouteTable
from vauban.hosts.vllm.runtime import open_runtime
from vauban.hosts.vllm.settings import policy_from
from vauban.hosts.vllm.stored import ResponseIds
from vauban.hosts.vllm.tool_gate import ToolGate, safe_name
from vauban.mark import Mark, Order, Sealer, new_nonce
from vauban.policy import Policy
from vauban.protocol.framing import Framer, make_framer
from vauban.protocol.hardening import Hardening
from vauban.protocol.owner import Owners
from vauban.recent import Excerpts, RecentEvents, RecentQueries
from vauban.screening import ScreenQueue, Watcher, watcher
from vauban.state.store import require_shared
from vauban.telemetry import AuditLog, Decision, process_metrics
from vauban.text.control_tokens import special_tokens
from vauban.treatment import Treatment
from vauban.types import Caller, Evidence, Mode, Principal, PrincipalKind, Reason

if TYPE_CHECKING:
    from starlette.datastructures import State

logger = logging.getLogger(__name__)

GUARD_TOKENS_PER_MODEL_TOKEN = 8
MIN_GUARD_TOKENS = 4_096
"""More than that can't reach the model: overlap, hidden text and coarse scripts included."""


class Front:
    """Empty until `open`; then everything a request needs.

    `place` is "engine" or "front": where the encoder runs. It is decided once, at start-up.
    """

    policy: Policy
    digest: str
    guard: Guard
    identity: Identity
    routes: RouteTable
    framer: Framer
    hardening: Hardening
    owners: Owners
    response_ids: ResponseIds
    treatment: Treatment
    tool_gate: ToolGate
    ledger: Ledger
    place: str
    default_model: str

    def __init__(self) -> None:
        self.in_flight = 0
        self.metrics = process_metrics()
        self.priority_scheduling = False
        self.nobody = Principal("nobody", PrincipalKind.ANONYMOUS)
        self._receiver: ReportReceiver | None = None
        self._queue: ScreenQueue | None = None
        self._watch: Watcher | None = None

    def configure(self, args: Any) -> None:
        """Check policy, keys and the listening address. Needs no engine, so wrong settings stop
        the server early.

        :raises ConfigError: with what to do.
        """
        self.loaded_policy = policy_from(getattr(args, "additional_config", None))
        self.policy = self.loaded_policy.policy
        self.digest = self.policy.digest  # computed once: it hashes the whole policy
        self.identity = Identity(self.policy.identity)
        self._require_approvers()
        require_safe_bind(self.identity, getattr(args, "uds", None) or args.host)
        self.routes = RouteTable(self.policy.routes)
        self._open_records()
        self._open_ledger(args)
        self._tool_rules = ToolRules(self.policy.tools)
        self.api_servers = getattr(args, "api_server_count", None) or 1
        self.hardening = Hardening(self.policy.logprobs, getattr(args, "max_logprobs", -1))

    def open(self, state: State) -> None:
        """Load the tokenizers, probe the chat template, find the encoder. Idempotent.

        :raises ConfigError: no place for the encoder, or its weights are wrong.
        """
        if self._receiver is not None:
            return
        if not hasattr(self, "policy"):
            self.configure(state.args)
        self.tokenizer = state.engine_client.renderer.get_tokenizer()
        self.guard = Guard(self.policy, special_tokens(self.tokenizer))
        self.framer = self._make_framer(state)
        self.priority_scheduling = state.vllm_config.scheduler_config.policy == "priority"
        context = state.engine_client.model_config.max_model_len
        self.max_guard_tokens = GUARD_TOKENS_PER_MODEL_TOKEN * context + MIN_GUARD_TOKENS
        self.default_model = state.openai_serving_models.model_name()
        self.ledger.open()
        runtime = open_runtime()
        self._sealer = runtime.sealer
        self.response_ids = ResponseIds(runtime.sealer)
        self.owners = Owners(runtime.sealer, self.policy.output)
        self.guard.open_output(runtime.sealer.tag(b"pii", b""))
        self.open_tool_gate(runtime.sealer, given=runtime.given)
        receiver = ReportReceiver(runtime.sealer, runtime.directory)
        receiver.open()
        self._receiver = receiver
        self.place = self._find_place(announced_engines(runtime.directory))
        if self.place == "front":
            self._queue = self._load_encoder()
        logger.info(
            "vauban guards this server, encoder in the %s, policy %s",
            self.place,
            self.digest,
        )

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None
            self.ledger.close()
            self.tool_gate.approvals.close()
        if self._queue is not None:
            self._queue.close()
        if self._watch is not None:
            self._watch.close()

    # -- per request ---------------------------------------------------------------------------

    @staticmethod
    def new_request_id() -> str:
        return secrets.token_hex(12)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def standing(self, principal: Principal, route: Route) -> Standing:
        """How a caller is treated on a route.

        Only an operator shuts the guard's own routes: neither a detector nor a lost store may keep
        the one out who could put it right. What tells of the server's health needs no store.

        :raises StandingUnknown: the store is lost and policy says to serve nobody.
        """
        if self.policy.response.mode is Mode.OFF:
            return Standing(principal.id)
        if route.kind.is_own:
            return self.ledger.decided(principal.id)
        if route.kind is Kind.PASSED and not route.stored:
            return self.ledger.remembered(principal.id)
        return self.treatment.standing(principal.id)

    def learn(self, principal: Principal, evidence: Evidence | Reason | None) -> None:
        """Enter what the extraction detector knows of a caller after a query."""
        self.treatment.learn(principal, evidence)
        if evidence is not None:
            self.metrics.observe_evidence(evidence)
        if evidence is not None and not isinstance(evidence, Reason):
            self.recent_queries.add(principal.id, evidence)

    async def screen_here(self, windows: Windows, caller: Caller | None = None) -> Report:
        """Screen in this process, in one batch with whatever else waits."""
        if self._queue is None:
            self._queue = await asyncio.to_thread(self._load_encoder)
        (future,) = self._queue.submit([windows], [caller])
        try:
            screened = await asyncio.wait_for(
                asyncio.wrap_future(future), self.policy.encoder.timeout_ms / 1000
            )
        except TimeoutError:
            return Report(b"", None, Reason.SCREEN_TIMEOUT, 0, 0.0, 0.0)
        outcome = screened.outcome
        if isinstance(outcome, Reason):
            return Report(b"", None, outcome, 0, screened.queue_ms, screened.encode_ms)
        return Report(
            b"",
            outcome.score,
            None,
            screened.batch,
            screened.queue_ms,
            screened.encode_ms,
            screened.evidence,
        )

    def ask_engine(
        self, windows: Windows, caller: Caller | None = None
    ) -> tuple[str, bytes, asyncio.Future[Report]]:
        """A mark that asks the engine half to screen, its nonce, and the answer to come."""
        receiver = self._open_receiver()
        nonce = new_nonce()
        mark = Mark(Order.SCREEN, nonce, receiver.name, windows, caller)
        return self._sealer.seal_mark(mark), nonce, receiver.expect(nonce)

    def forget(self, nonce: bytes) -> None:
        if self._receiver is not None:
            self._receiver.forget(nonce)

    def pass_mark(self) -> str:
        """A mark that tells the engine half that the front has judged already."""
        return self._sealer.seal_mark(Mark(Order.PASS, new_nonce(), "", Windows(())))

    def record(self, decision: Decision, excerpt: Mapping[str, Any] | None = None) -> None:
        self.metrics.observe(decision)
        self.audit.decision(decision, excerpt)

    def record_refusal(self, error: RequestError, route: str, request_id: str) -> None:
        self.metrics.refused.labels(error.code).inc()
        self.audit.refused(request_id=request_id, code=error.code, route=route)

    def record_transition(self, transition: Transition) -> None:
        self.metrics.observe_transition(transition)
        self.audit.transition(transition)

    def record_tool_call(self, **fields: Any) -> None:
        """Audit a call that does not pass freely: names and reasons, no arguments."""
        self.audit.tool_call(**fields)

    def record_step(self, step: Step) -> None:
        """From any thread."""
        approval = step.approval
        self.metrics.approvals.labels(step.action).inc()
        self.audit.approval(
            id=approval.id,
            action=step.action,
            principal=approval.tenant,
            by=step.by,
            state=approval.state.value,
            tools=[safe_name(call.tool) for call in approval.calls],
            policy=approval.policy,
        )

    def record_output(self, findings: Mapping[tuple[str, str], int], **ids: str) -> None:
        """Count and audit what was found in an answer: detectors and actions, no text."""
        for (detector, action), number in findings.items():
            self.metrics.output.labels(detector, action).inc(number)
        if findings:
            self.audit.output(
                findings={f"{d}.{action}": n for (d, action), n in sorted(findings.items())}, **ids
            )

    # -- start-up ------------------------------------------------------------------------------

    def _require_approvers(self) -> None:
        held_by = self.policy.output.held_by
        if held_by and self.identity.anonymous_allowed:
            raise ConfigError(
                f"output.{held_by[0]} is hold, but without keys nobody can release an answer: make"
                " a key with `vauban keys add NAME --scope approve` and set identity.keys_file, or"
                " write stop instead of hold"
            )

    def _open_receiver(self) -> ReportReceiver:
        if self._receiver is None:
            raise ConfigError("the front is not open")
        return self._receiver

    def _open_ledger(self, args: Any) -> None:
        policy = self.policy
        if policy.response.mode is not Mode.OFF:
            require_shared(
                policy.state,
                api_servers=getattr(args, "api_server_count", None) or 1,
                engines=getattr(args, "data_parallel_size", None) or 1,
            )
        self.treatment = Treatment(
            policy,
            on_transition=self.record_transition,
            on_levels=self.metrics.count_levels,
        )
        self.ledger = self.treatment.ledger
        self.ledger.on_reset(self.recent_queries.forget)

    def _open_records(self) -> None:
        console = self.policy.console
        self.recent_events = RecentEvents(console.recent_events)
        self.recent_queries = RecentQueries(console.watched_users, console.watched_queries)
        self.excerpts = Excerpts(console.excerpt_chars, self.policy.output)
        self.audit = AuditLog(self.policy.audit, self.recent_events)

    def open_tool_gate(self, sealer: Sealer, *, given: bool) -> None:
        """:raises ConfigError: approvals can't be kept where the policy says."""
        tools, output = self.policy.tools, self.policy.output
        store, secret = open_place(
            self.policy.state, tools, own=sealer.tag(b"approvals", b""), given=given,
            processes=self.api_servers, answers=bool(output.held_by),
            deployment=deployment_of(self.policy.identity),
        )  # fmt: skip
        approvals = Approvals(
            store, secret, tools, output_digest=output.digest, on_step=self.record_step
        )
        with suppress(StateUnavailable):  # asked again for each call
            if tools.mode is not Mode.OFF or output.held_by:
                approvals.open()
        self.tool_gate = ToolGate(
            tools, self._tool_rules, approvals, Receipts(secret, tools.receipt_s),
            record=self.record_tool_call,
            count=lambda decision, why: self.metrics.tool_calls.labels(decision, why).inc(),
            approvers=not self.identity.anonymous_allowed, holds_answers=bool(output.held_by),
        )  # fmt: skip

    def _find_place(self, engines: Sequence[str]) -> str:
        wanted = self.policy.encoder.place
        if wanted == "front":
            return "front"
        if engines and all(digest == self.digest for digest in engines):
            return "engine"
        why = (
            "the engine runs another policy" if engines else "the engine runs no logits processors"
        )
        if wanted == "engine":
            raise ConfigError(f"encoder.place is engine, but {why}; use auto or front")
        logger.warning("vauban screens in the API server: %s", why)
        return "front"

    def _load_encoder(self) -> ScreenQueue:
        import torch

        from vauban.detectors.encoder import Encoder

        wanted = self.policy.encoder.device
        device = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        started = time.perf_counter()
        encoder = Encoder.load(self.policy.encoder, device)
        logger.info(
            "vauban's encoder loaded in %.1f s on %s", time.perf_counter() - started, device
        )
        self._watch = watcher(self.policy.extraction, self.policy.state)
        return ScreenQueue(encoder.encode, self.policy.encoder.queue_tokens, self._watch)

    def _make_framer(self, state: State) -> Framer:
        def render(messages: Sequence[Mapping[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=getattr(state.online_renderer, "chat_template", None),
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )

        def count(text: str) -> int:
            return len(self.encode(text))

        has_template = getattr(state.online_renderer, "chat_template", None) or getattr(
            self.tokenizer, "chat_template", None
        )
        return make_framer(self.policy.sandwich, render if has_template else None, count)
