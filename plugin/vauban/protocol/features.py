"""Options of a request that need a scope of their own, or that no guard can follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vauban.access.scopes import ADMIN, SYSTEM_PROMPT, allows
from vauban.errors import Forbidden, MalformedRequest
from vauban.policy import Policy
from vauban.protocol.bodies import Body
from vauban.protocol.shapes import Shape

_FEATURE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "logprobs": ("logprobs", "top_logprobs", "prompt_logprobs", "logprob_token_ids"),
    "tools": ("tools", "functions"),
    "structured_outputs": ("response_format", "structured_outputs"),
    "token_ids": ("return_token_ids", "return_tokens_as_token_ids", "return_token_offsets"),
}
# They give the prompt back, and with it the operator's instruction.
_ECHO_FIELDS = (
    "echo", "prompt_logprobs", "return_prompt_text", "return_token_ids",
    "return_token_offsets", "enable_response_messages",
)  # fmt: skip
# They point the server at other hosts.
_ADMIN_FIELDS = ("kv_transfer_params", "ec_transfer_params", "features")
# They cut the operator's instruction off.
_CUT_FIELDS = ("truncate_prompt_tokens", "truncation_side")
_CLIENT_TOOLS = frozenset({"function", "custom", "namespace"})
_UNSET: tuple[Any, ...] = (None, False, [], {})


def check_fields(
    data: Mapping[str, Any], shape: Shape, scopes: frozenset[str], policy: Policy
) -> None:
    """:raises Forbidden: the caller lacks a scope. :raises MalformedRequest: can't be guarded."""
    sampling = data.get("sampling_params")
    if isinstance(sampling, dict):  # a field of the same name above must not hide one in there
        _check_options(sampling, scopes, policy)
    _check_options(data, scopes, policy)
    _check_priority(data.get("priority"), scopes)
    if shape is Shape.RESPONSES and not policy.routes.builtin_tools:
        _refuse_builtin_tools(data.get("tools"))


def _check_options(fields: Mapping[str, Any], scopes: frozenset[str], policy: Policy) -> None:
    if fields.get("use_beam_search"):
        raise MalformedRequest(
            "beam search is not served: its requests carry no mark", param="use_beam_search"
        )
    for feature, names in _FEATURE_FIELDS.items():
        for name in names:
            if _is_set(fields, name):
                _require(scopes, feature, name)
    if "message.output_text.logprobs" in _listed(fields.get("include")):
        _require(scopes, "logprobs", "include")
    for name in ("text", "output_config"):
        options = fields.get(name)
        if isinstance(options, dict) and _is_set(
            {"response_format": options.get("format")}, "response_format"
        ):
            _require(scopes, "structured_outputs", name)
    for name in _ADMIN_FIELDS:
        if _is_set(fields, name) and ADMIN not in scopes:
            raise Forbidden(f"{name} needs the scope {ADMIN}", param=name)
    if policy.sandwich.instruction and not allows(scopes, feature=SYSTEM_PROMPT):
        cut = ("truncation",) if fields.get("truncation") == "auto" else ()
        for name in (*_ECHO_FIELDS, *_CUT_FIELDS, *cut):
            if _is_set(fields, name):
                raise Forbidden(f"{name} needs the scope {SYSTEM_PROMPT}", param=name)


def _check_priority(priority: Any, scopes: frozenset[str]) -> None:
    """A client may let others go first, and not itself before others, who have 0."""
    if priority is None:
        return
    if type(priority) is not int:
        raise MalformedRequest("priority must be an integer", param="priority")
    if priority < 0 and ADMIN not in scopes:
        raise Forbidden(f"a priority below 0 needs the scope {ADMIN}", param="priority")


def check_body_features(body: Body, scopes: frozenset[str], policy: Policy) -> None:
    """:raises Forbidden: the caller lacks a scope for what the body holds."""
    if body.has_media:
        _require(scopes, "multimodal", "images, audio and video")
    if body.has_token_ids():
        _require(scopes, "token_ids", "token ids in place of text")
        if policy.sandwich.instruction and not allows(scopes, feature=SYSTEM_PROMPT):
            raise Forbidden(f"token ids in place of text need the scope {SYSTEM_PROMPT}")


def _is_set(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:  # nearly always
        return False
    if name == "response_format" and isinstance(value, dict) and value.get("type") == "text":
        return False
    if name == "top_logprobs" and value == 0:
        return False
    return not any(value is unset or value == unset for unset in _UNSET) or (
        name in ("logprobs", "prompt_logprobs") and value is not None and value is not False
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _require(scopes: frozenset[str], feature: str, what: str) -> None:
    if not allows(scopes, feature=feature):
        raise Forbidden(f"{what}: the credential lacks the scope feature:{feature}")


def _refuse_builtin_tools(tools: Any) -> None:
    if not isinstance(tools, list):
        return
    for tool in tools:
        kind = tool.get("type") if isinstance(tool, dict) else "function"
        if not isinstance(kind, str) or kind not in _CLIENT_TOOLS:
            raise MalformedRequest(
                "the server's own tools are not open: their output would reach the model"
                " unscreened (routes.builtin_tools)",
                param="tools",
            )
