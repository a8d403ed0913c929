"""The policy of the tools that a model may call."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import BeforeValidator, Field, field_validator

from vauban.policy_base import Section, field
from vauban.policy_standing import check_store
from vauban.types import Mode

ToolAction = Literal["allow", "ask", "deny"]

DESTRUCTIVE_VERBS = (
    "buy", "delete", "deploy", "destroy", "drop", "erase", "exec", "execute", "kill", "overwrite",
    "pay", "payment", "publish", "purchase", "purge", "refund", "remove", "revoke", "rm", "rmdir",
    "sell", "send", "shutdown", "terminate", "transfer", "truncate", "unlink", "wipe", "wire",
    "withdraw",
)  # fmt: skip


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


_Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class ToolRule(Section):
    """What one tool may do. Arguments are named by dotted path; a list counts as each of its
    entries, and an argument that is not there breaks no rule (`arguments` can require it)."""

    action: ToolAction = field("ask", "What a call means whose arguments keep all rules.")
    arguments: dict[str, Any] | None = field(
        None, "JSON schema (2020-12) that the arguments must match."
    )
    recipients: dict[str, _Texts] = field(
        {}, "Argument: hosts or mail domains that its addresses must lie in, or under."
    )
    amounts: dict[str, float] = field({}, "Argument: the largest number it may be, from 0 on.")
    paths: dict[str, _Texts] = field({}, "Argument: directories that its paths must lie in.")
    otherwise: Literal["ask", "deny"] = field(
        "deny", "What a call means whose arguments break a rule."
    )
    tainted: ToolAction = field(
        "ask", "What a call means, at least, when the model has read tool results or documents."
    )

    @field_validator("arguments")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message[:200]}") from None
        if any(not str(reference).startswith("#") for reference in _references(schema)):
            raise ValueError("not a JSON schema that stands alone: a $ref points out of it")
        return schema

    @field_validator("paths")
    @classmethod
    def _are_absolute(cls, paths: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for path in (path for listed in paths.values() for path in listed):
            if not path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"{path!r} is not an absolute path")
        return paths


def _references(schema: Any) -> list[Any]:
    if isinstance(schema, list):
        return [found for item in schema for found in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema[name] for name in ("$ref", "$dynamicRef") if name in schema]
    return own + [found for item in schema.values() for found in _references(item)]


class ToolsPolicy(Section):
    """Which of the model's tool calls leave the server: allow, ask a person first, or deny."""

    mode: Mode = field(Mode.ENFORCE, "enforce, monitor (calls pass and are counted) or off.")
    rules: dict[str, ToolRule] = Field(
        default_factory=dict,
        description="Tool: its rule; see the README's section on tool calls. Case, separators and"
        " look-alike letters in names don't matter.",
    )
    unlisted: ToolAction = field(
        "deny", "What the call of a tool without a rule means, once there are rules at all."
    )
    destructive: ToolAction = field(
        "ask",
        "What the call of a tool without a rule means, at least, whose name has one of"
        " destructive_verbs in it.",
    )
    destructive_verbs: tuple[str, ...] = field(
        DESTRUCTIVE_VERBS, "Words in a tool's name that say that it destroys, sends or spends."
    )
    approval_s: int = field(
        600,
        "How long a call, or an answer that is held, waits for a person. Then it is denied.",
        "seconds",
        ge=1,
        le=86_400,
    )
    receipt_s: int = field(
        300, "How long the receipt of a released call is valid.", "seconds", ge=1, le=86_400
    )
    max_calls_per_caller: int = field(
        30,
        "Most approvals that one caller may ask for within approval_s; further calls are denied."
        " Who is asked too often approves anything.",
        "approvals",
        ge=1,
        le=500,
    )
    max_call_bytes: int = field(
        16_384,
        "Largest arguments that are judged by a rule or shown to a person; larger ones are denied.",
        "bytes",
        ge=256,
        le=32_768,
    )
    store: str | None = field(
        None,
        "Where approvals are kept, written like state.store. Default: with state.store; where that"
        " is memory, in a file vauban/approvals*.db under $XDG_STATE_HOME (~/.local/state), one for"
        " each key file, since its approvers see what waits.",
    )

    @field_validator("store")
    @classmethod
    def _is_a_store(cls, url: str | None) -> str | None:
        return None if url is None else check_store(url)

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON of this section."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
