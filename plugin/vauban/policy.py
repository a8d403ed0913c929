"""Every tunable of vauban, once.

The schema below gives the YAML file, the environment variables, the
`--additional-config.vauban.*` flags of vLLM, `vauban policy --explain` and the README's table.
`policy_sources.py` reads them.
"""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from vauban.policy_base import Section as _Section
from vauban.policy_base import field as _field
from vauban.policy_console import ConsolePolicy
from vauban.policy_extraction import ExtractionPolicy
from vauban.policy_output import OutputPolicy
from vauban.policy_sandbox import SandboxPolicy
from vauban.policy_standing import ResponsePolicy, StatePolicy
from vauban.policy_tools import ToolsPolicy
from vauban.types import Mode, Origin


class LimitsPolicy(_Section):
    """How large a request may be. Over a limit is an answer (413), never a cut."""

    max_body_bytes: int = _field(
        4 * 1024 * 1024, "Largest request body.", "bytes", ge=1024, le=256 * 1024 * 1024
    )
    body_timeout_ms: int = _field(
        60_000,
        "Longest time a request's body may take to arrive. It holds a place among the requests"
        " in flight meanwhile.",
        "milliseconds",
        ge=10,
        le=3_600_000,
    )
    max_text_chars: int = _field(
        1_000_000, "Most characters of text in one request.", "characters", ge=256, le=50_000_000
    )
    max_segments: int = _field(
        2048,
        "Most pieces of text (messages, parts, tool results) in one request.",
        "segments",
        ge=1,
        le=100_000,
    )
    max_in_flight: int = _field(
        1024,
        "Guarded requests one API server serves at once; more are answered 503.",
        "requests",
        ge=1,
        le=1_000_000,
    )


class IdentityPolicy(_Section):
    """Who may call. Without keys_file and jwks_file the server starts on loopback only."""

    keys_file: Path | None = _field(None, "Key store written by `vauban keys add`.")
    jwks_file: Path | None = _field(None, "JWKS with the public keys that sign accepted JWTs.")
    jwt_issuer: str | None = _field(None, "Required `iss` of a JWT.")
    jwt_audience: str | None = _field(None, "Required `aud` of a JWT.")
    jwt_scope_claim: str = _field("scope", "Claim that holds the scopes (string or list).")
    jwt_service_claim: str | None = _field(
        None, "Claim that is true for a program that serves many people."
    )
    jwt_group_claim: str | None = _field(
        None, "Claim with the customer or parent that a token was issued to."
    )
    anonymous_scopes: tuple[str, ...] = _field(
        ("*",), "Scopes of callers when no key is configured (loopback only)."
    )
    trusted_proxies: tuple[str, ...] = _field(
        (),
        "Addresses or networks of proxies whose X-Forwarded-For says who asks (127.0.0.1 for one on"
        " this machine). Nobody else's counts. If vLLM is not started by `vauban serve`, start it"
        " with an empty FORWARDED_ALLOW_IPS, or whoever is on this machine can say so, too.",
    )
    trusted_network: bool = _field(
        False,
        "Triton only: nothing but the operator's gateway reaches the server, so the caller is who"
        " the parameter `x-vauban-principal` or the tensor `principal` says. A request that says"
        " nothing is refused.",
    )
    requests_per_min: int | None = _field(
        None,
        "Default ceiling per principal; a key's own ceiling wins.",
        "requests/minute",
        ge=1,
        le=1_000_000,
    )
    tokens_per_min: int | None = _field(
        None,
        "Default ceiling of prompt and completion tokens per principal.",
        "tokens/minute",
        ge=1,
        le=1_000_000_000,
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ipaddress.ip_network(proxy)  # ValueError names it
        return proxies


class RoutesPolicy(_Section):
    """Which routes are open. A route that is not in the table is refused."""

    docs: bool = _field(False, "Open /docs, /redoc and /openapi.json.")
    metrics_without_key: bool = _field(
        False, "Serve /metrics without a credential when keys are configured."
    )
    builtin_tools: bool = _field(
        False,
        "Let Responses requests use the server's own tools. Their output reaches the model"
        " without passing the guard.",
    )


class NormalizePolicy(_Section):
    """Undoing unicode tricks, so that guard and model read the same text."""

    mode: Mode = _field(
        Mode.ENFORCE,
        "enforce: the model gets the cleaned text; monitor: report only; off: leave text alone.",
    )
    neutralise_control_tokens: bool = _field(
        True, "Break chat-template control tokens (`<|im_start|>`, `[INST]`...) written by users."
    )
    decode_depth: int = _field(
        2,
        "How often decoded spans (base64, hex, rot13, percent...) are decoded again.",
        "levels",
        ge=0,
        le=4,
    )
    max_decoded_chars: int = _field(
        262_144,
        "Most characters of decoded spans that are screened besides the text.",
        "characters",
        ge=0,
        le=10_000_000,
    )


class SandwichPolicy(_Section):
    """The operator's instruction before and after untrusted content (arXiv 2403.14720)."""

    mode: Literal["on", "off"] = _field("on", "Frame untrusted content.")
    origins: tuple[Origin, ...] = _field(
        (Origin.USER, Origin.TOOL, Origin.DOCUMENT), "Whose text is framed."
    )
    instruction: str | None = _field(
        None, "The operator's instruction, put before untrusted content.", max_length=20_000
    )
    reminder: str | None = _field(
        None,
        "What is repeated after untrusted content; default: a short form of the rule.",
        max_length=2_000,
    )
    transform: Literal["none", "datamark", "base64"] = _field(
        "none", "Spotlighting of tool and document text: interleave a marker, or encode it."
    )
    max_added_tokens: int = _field(
        64,
        "Most tokens the frame may add (the operator's own instruction not counted).",
        "tokens",
        ge=16,
        le=4096,
    )


class EncoderPolicy(_Section):
    """The small model that reads every request."""

    weights: Path | None = _field(
        None, "Directory of the encoder; default: the one that ships in the package."
    )
    classifiers: tuple[Path, ...] = _field(
        (),
        "Local Hugging Face sequence-classification models that judge in addition"
        " (safetensors only; the worst score counts).",
    )
    place: Literal["auto", "engine", "front"] = _field(
        "auto", "Where it runs: beside the main model in the engine, or in the API server."
    )
    device: str = _field(
        "auto",
        "Torch device in the front; in the engine it is the worker's own.",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    batch_tokens: int = _field(
        16_384, "Padded tokens in one forward pass.", "tokens", ge=512, le=1_048_576
    )
    queue_tokens: int = _field(
        4_194_304,
        "Tokens that may wait for the encoder; more are answered by fail-closed rule.",
        "tokens",
        ge=512,
        le=1_073_741_824,
    )
    timeout_ms: int = _field(
        30_000,
        "Longest wait for a verdict once the request has reached the encoder.",
        "milliseconds",
        ge=10,
        le=600_000,
    )


class InjectionPolicy(_Section):
    """The injection classifier's thresholds, on its calibrated score."""

    mode: Mode = _field(Mode.ENFORCE, "enforce, monitor (headers and metrics only) or off.")
    block_at: float | None = _field(
        None,
        "Block at this score or above; default: the checkpoint's own threshold.",
        "score",
        ge=0.0,
        le=1.0,
    )
    flag_at: float | None = _field(
        None,
        "Flag at this score or above; default: the checkpoint's own threshold.",
        "score",
        ge=0.0,
        le=1.0,
    )
    on_failure: Literal["block", "allow"] = _field(
        "block", "What an encoder that fails, times out or returns NaN means."
    )
    unmarked: Literal["screen", "veto", "allow"] = _field(
        "screen",
        "A request that reached the engine past the front (offline `LLM`, front not"
        " loaded): the engine screens the decoded prompt, refuses it, or lets it pass.",
    )

    @model_validator(mode="after")
    def _flag_below_block(self) -> InjectionPolicy:
        if self.flag_at is not None and self.block_at is not None and self.flag_at > self.block_at:
            raise ValueError("flag_at must not be above block_at")
        return self


class LogprobsPolicy(_Section):
    """What log-probabilities tell about the model's weights, and to whom (arXiv 2403.06634)."""

    mode: Literal["on", "off"] = _field(
        "on", "Harden log-probabilities; off: clients get all that vLLM gives."
    )
    top_k: int = _field(
        5,
        "Most alternatives per token, and the rank up to which the chosen token's own value is told"
        " (beyond it: -9999). The server's --max-logprobs must be above it.",
        "tokens",
        ge=0,
        le=19,
    )
    decimals: int = _field(
        2, "Log-probabilities are rounded to so many decimals.", "decimals", ge=0, le=6
    )
    prompt: bool = _field(
        False,
        "Serve log-probabilities of the prompt (prompt_logprobs, echo with logprobs), unhardened:"
        " whoever may ask for them can compute the output layer.",
    )
    token_ids: bool = _field(
        False, "Serve token ids beside text (return_token_ids, return_tokens_as_token_ids)."
    )
    bias: Literal["apart", "refuse"] = _field(
        "apart",
        "logit_bias and allowed_token_ids: apart = never in a request that asks for"
        " log-probabilities; refuse = never.",
    )
    degraded_temperature: float = _field(
        0.7, "Lowest temperature of a caller who is degraded.", "", ge=0.0, le=2.0
    )


class AnswerPolicy(_Section):
    """What a client sees of a verdict."""

    blocked: Literal["error", "refusal"] = _field(
        "error",
        "A blocked request gets a 400 with code content_filter, or a normal answer with"
        " finish_reason content_filter and the refusal text.",
    )
    refusal: str = _field(
        "I can't help with that request.", "Text of the refusal.", min_length=1, max_length=2_000
    )
    details: bool = _field(
        False,
        "Send score and timing headers. They help an attacker to search; use them on test servers.",
    )


class AuditPolicy(_Section):
    """One JSON line per decision; ids, lengths, scores and reasons only."""

    log: Literal["stdout", "off"] | Path = _field(
        "stdout", "Where audit events go: stdout, off, or a file that is appended to."
    )


class Policy(_Section):
    """The whole policy. Immutable; `digest` names it in logs and headers."""

    limits: LimitsPolicy = Field(default_factory=LimitsPolicy)
    identity: IdentityPolicy = Field(default_factory=IdentityPolicy)
    routes: RoutesPolicy = Field(default_factory=RoutesPolicy)
    normalize: NormalizePolicy = Field(default_factory=NormalizePolicy)
    sandwich: SandwichPolicy = Field(default_factory=SandwichPolicy)
    encoder: EncoderPolicy = Field(default_factory=EncoderPolicy)
    injection: InjectionPolicy = Field(default_factory=InjectionPolicy)
    extraction: ExtractionPolicy = Field(default_factory=ExtractionPolicy)
    logprobs: LogprobsPolicy = Field(default_factory=LogprobsPolicy)
    output: OutputPolicy = Field(default_factory=OutputPolicy)
    tools: ToolsPolicy = Field(default_factory=ToolsPolicy)
    sandbox: SandboxPolicy = Field(default_factory=SandboxPolicy)
    answer: AnswerPolicy = Field(default_factory=AnswerPolicy)
    state: StatePolicy = Field(default_factory=StatePolicy)
    response: ResponsePolicy = Field(default_factory=ResponsePolicy)
    audit: AuditPolicy = Field(default_factory=AuditPolicy)
    console: ConsolePolicy = Field(default_factory=ConsolePolicy)

    @property
    def encodes(self) -> bool:
        """Whether anything reads what the encoder says of a request."""
        return not (self.injection.mode is self.extraction.mode is Mode.OFF)

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
