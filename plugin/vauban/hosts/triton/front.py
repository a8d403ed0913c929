"""`guard_input`: who asks, what the model gets, and what the encoder must see."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from vauban.access.identity import Identity
from vauban.access.scopes import SYSTEM_PROMPT, allows
from vauban.access.standing import Standing
from vauban.errors import (
    Forbidden,
    MalformedRequest,
    RequestError,
    RequestTooLarge,
    StateUnavailable,
)
from vauban.guard import Guard, Standings, standing_of
from vauban.hosts.triton.callers import Callers
from vauban.hosts.triton.extraction import Who
from vauban.hosts.triton.requests import Asked, Values, read_parameters, read_request
from vauban.hosts.triton.seal import Bundle, Seal
from vauban.hosts.triton.served import ServedModel
from vauban.policy import Policy
from vauban.protocol.bodies import Body
from vauban.protocol.features import check_body_features, check_fields
from vauban.protocol.framing import make_framer
from vauban.protocol.hardening import Hardening
from vauban.protocol.owner import Owners, operator_texts
from vauban.protocol.shapes import Shape
from vauban.telemetry import AuditLog
from vauban.text.control_tokens import special_tokens
from vauban.treatment import refuse, treated
from vauban.types import Level, Mode, Principal

PROMPT: Final = "prompt"
WINDOWS: Final = "windows"
GUARD_TOKENS_PER_MODEL_TOKEN: Final = 8
MIN_GUARD_TOKENS: Final = 4_096
DEFAULT_MAX_TOKENS: Final = 16
"""What vLLM generates at most where the sampling parameters don't say."""

_GROUPS = {Shape.CHAT: "chat", Shape.COMPLETION: "completions"}


@dataclass(frozen=True, slots=True)
class Terms:
    """What of a request its answer depends on.

    `repeat`: text that goes before the answer. `options`: what the client asks for beside the
    text. `told`: the operator's texts, which must not be repeated, nor the `canaries` in them.
    """

    principal: str
    repeat: str
    options: Sequence[str]
    told: Sequence[str]
    canaries: Sequence[str]


class GuardInput:
    """Turns one request into two sealed bundles: `prompt` for the LLM, `windows` for the encoder.

    :param name: the model name that `model:PATTERN` scopes are matched with.
    :param users: tells how callers are treated; None: all are treated alike.
    :raises ConfigError: wrong policy, keys or weights.
    """

    def __init__(
        self,
        policy: Policy,
        served: ServedModel,
        seal: Seal,
        owners: Owners,
        name: str,
        identity: Identity | None = None,
        users: Standings | None = None,
    ) -> None:
        self._policy = policy
        self._served = served
        self._seal = seal
        self._owners = owners
        self._name = name
        self._identity = identity or Identity(policy.identity)
        self._users = users
        self._hardening = Hardening(policy.logprobs)
        self._callers = Callers(policy.identity, self._identity)
        self._audit = AuditLog(policy.audit)
        self._guard = Guard(policy, special_tokens(served.tokenizer))
        render = served.render if served.has_template else None
        self._framer = make_framer(policy.sandwich, render, served.count)
        context = GUARD_TOKENS_PER_MODEL_TOKEN * served.max_model_len
        self._max_guard_tokens = context + MIN_GUARD_TOKENS

    def __call__(self, values: Values, parameters: str | None) -> tuple[bytes, bytes]:
        """The bundles `prompt` and `windows`.

        :param parameters: the request's parameters, JSON.
        :raises RequestError: the request can't be served.
        """
        started = time.perf_counter()
        ticket = secrets.token_hex(12)
        try:
            return self._read(values, parameters, ticket, started)
        except RequestError as error:
            self._audit.refused(request_id=ticket, code=error.code, route=self._name)
            raise

    def _read(
        self, values: Values, parameters: str | None, ticket: str, started: float
    ) -> tuple[bytes, bytes]:
        asked = read_request(values, self._policy.limits.max_body_bytes)
        principal, standing = self._admit(asked, read_parameters(parameters))
        body = Body(
            asked.data,
            trusted_system=allows(principal.scopes, feature=SYSTEM_PROMPT),
            decode=self._served.decode,
            max_leaves=self._policy.limits.max_segments,
        )
        check_body_features(body, principal.scopes, self._policy)
        if body.has_media or body.has_token_ids():
            raise MalformedRequest("only text is served here", param="messages")
        segments = body.segments
        reading = self._guard.read(segments)
        if reading.windows.tokens > self._max_guard_tokens:
            raise RequestTooLarge("the text is far longer than the model's context")
        body.put(reading.texts, self._served.encode)
        if any(self._guard.spells_control_token(run) for run in body.conversations()):
            raise MalformedRequest("a control token is spread over several pieces of text")
        self._framer.frame(body, asked.shape)
        told = operator_texts(segments, self._policy.sandwich.instruction)
        prompt = self._prompt(asked, principal, told, ticket)
        self._charge(principal, asked, reading.windows.tokens)
        context = {
            "caller": asdict(Who.of(principal)),
            "standing": standing.level.name.lower(),
            "complete": reading.complete,
            "chars": sum(len(s.text) for s in segments if not s.origin.trusted),
            "segments": len(segments),
            "findings": sorted(reading.findings.items()),
            "front_ms": (time.perf_counter() - started) * 1000,
        }
        windows = Bundle(ticket, context, reading.windows.to_bytes())
        return self._seal.close(PROMPT, Bundle(ticket, prompt)), self._seal.close(WINDOWS, windows)

    def _admit(self, asked: Asked, parameters: Mapping[str, str]) -> tuple[Principal, Standing]:
        """Who asks, as the level of theirs has it, before anything is read of the text."""
        principal = self._callers.authenticate(parameters, asked.principal)
        standing = self._standing(principal)
        enforced = Level.CLEAR
        if self._policy.response.mode is Mode.ENFORCE:
            enforced = standing.level
            refuse(standing, time.time())
            principal = treated(principal, enforced, self._policy.response)
        self._allow(principal, asked)
        self._identity.admit(principal)
        # Sampling parameters are vLLM's own here, as on its token-level route.
        self._hardening.request(asked.data, Shape.TOKENS, degraded=enforced >= Level.DEGRADED)
        return principal, standing

    def _standing(self, principal: Principal) -> Standing:
        mode = self._policy.response.mode
        if self._users is None or mode is Mode.OFF:
            return Standing(principal.id)
        if mode is Mode.ENFORCE:
            return standing_of(self._users, principal.id, self._policy.state)
        try:
            return self._users.standing(principal.id)
        except StateUnavailable:  # told for the record only
            return self._users.remembered(principal.id)

    def _allow(self, principal: Principal, asked: Asked) -> None:
        if not allows(principal.scopes, group=_GROUPS[asked.shape], model=self._name):
            raise Forbidden("the credential does not cover this model or this kind of request")
        # vLLM also reads options in there, of those that need a scope.
        extra = {"sampling_params": asked.sampling.get("extra_args")}
        for fields in (asked.data, extra):
            check_fields(fields, asked.shape, principal.scopes, self._policy)

    def _prompt(
        self, asked: Asked, principal: Principal, told: Sequence[str], ticket: str
    ) -> dict[str, Any]:
        data = asked.data
        chat = asked.shape is Shape.CHAT
        canaries = self._owners.place(data, asked.shape, principal, ticket) if told else ()
        self._owners.salt(data, asked.shape, principal)
        terms = Terms(principal.id, asked.repeat or "", asked.options, told, canaries)
        return {
            "text": self._served.prompt(data["messages"]) if chat else data["prompt"],
            "sampling": asked.sampling,
            "stream": asked.stream,
            "salt": data.get("cache_salt", ""),
            "terms": asdict(terms),
        }

    def _charge(self, principal: Principal, asked: Asked, prompt_tokens: int) -> None:
        """Charged before it is spent: what is generated becomes known in another process."""
        if principal.limit.tokens_per_min is None:
            return
        wanted = asked.sampling.get("max_tokens", DEFAULT_MAX_TOKENS)
        most = wanted if type(wanted) is int and wanted > 0 else self._served.max_model_len
        answers = asked.sampling.get("n", 1)
        times = answers if type(answers) is int and answers > 0 else 1
        self._identity.charge(principal, prompt_tokens + most * times)
