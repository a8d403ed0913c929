"""What a credential opens: the grammar of scopes and the one function that reads them.

    scope  = "*" | GROUP | "model:" PATTERN | "feature:" NAME | "feature:*"
           | "admin" | "approve" | "console" | "prompt:system"

- GROUP opens the routes of that group (`ROUTE_GROUPS`); `*` opens all of them, and all features.
- `feature:NAME` opens an option of the request (`FEATURES`); `feature:*` opens all of them.
- `model:PATTERN` takes away: as soon as one is present, only models matching one of them
  (shell pattern, case-sensitive) may be used. It opens no route by itself.
- `admin`, `approve`, `console` and `prompt:system` are given by name only. `*` never covers them: a
  caller with `prompt:system` writes text that is not screened, one with `admin` can change the
  server, one with `approve` lets other callers' tool calls out, one with `console` reads what the
  server has decided about others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

from vauban.errors import ConfigError

ALL: Final = "*"
ADMIN: Final = "admin"
APPROVE: Final = "approve"
CONSOLE: Final = "console"
SYSTEM_PROMPT: Final = "prompt:system"
MODEL_PREFIX: Final = "model:"
FEATURE_PREFIX: Final = "feature:"
MAX_PATTERN_CHARS: Final = 256
MAX_MODEL_CHARS: Final = 4096

PRIVILEGED: Final = frozenset({ADMIN, APPROVE, CONSOLE, SYSTEM_PROMPT})

ROUTE_GROUPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "chat": "chat completions",
        "completions": "plain completions",
        "responses": "the Responses API",
        "messages": "the Anthropic Messages API",
        "generate": "generation from token ids, and provider-specific invocations",
        "embeddings": "embeddings",
        "pooling": "pooling, classification, scores and reranking",
        "audio": "transcription, translation and realtime audio",
        "tokenize": "tokenize, detokenize, render and token counts",
        "models": "the list of models",
        "status": "load, version and other read-only state of the server",
        "metrics": "Prometheus metrics",
        ADMIN: "routes that change the server (never covered by *)",
        APPROVE: "approval of other callers' tool calls (never covered by *)",
        CONSOLE: "reading decisions, policy and state of the server (never covered by *)",
    }
)

FEATURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "logprobs": "log-probabilities of the answer or of the prompt",
        "tools": "tool definitions and tool calls",
        "structured_outputs": "JSON schema, regex, choice and grammar constraints",
        "multimodal": "image, audio and video parts",
        "token_ids": "token ids in place of text, in the request or the answer",
    }
)


def parse_scopes(values: Iterable[str]) -> frozenset[str]:
    """The scopes an operator wrote, checked.

    :raises ConfigError: one of them is not in the grammar. A typo must not pass: a misspelt
        `model:` would silently lift the restriction it was meant to be.
    """
    scopes = frozenset(values)
    if wrong := sorted(scope for scope in scopes if not _is_known(scope)):
        raise ConfigError(
            f"unknown scope {wrong[0][:80]!r}; allowed: {ALL}, {', '.join(ROUTE_GROUPS)},"
            f" {SYSTEM_PROMPT}, {MODEL_PREFIX}PATTERN, {FEATURE_PREFIX}*,"
            f" {', '.join(FEATURE_PREFIX + name for name in FEATURES)}"
        )
    return scopes


def known_scopes(values: Iterable[str]) -> frozenset[str]:
    """The scopes of a token that mean something here; the rest belongs to other services.

    A `model:` scope is kept even when its pattern is unusable. Dropping it would turn
    "restricted to something we can't read" into "not restricted".
    """
    return frozenset(
        value for value in values if _is_known(value) or value.startswith(MODEL_PREFIX)
    )


def allows(
    scopes: frozenset[str],
    *,
    group: str | None = None,
    model: str | None = None,
    feature: str | None = None,
) -> bool:
    """Whether the scopes cover everything that is asked.

    :param group: route group, see `ROUTE_GROUPS`.
    :param model: the model that will answer. For a body without one pass the server's default;
        None asks nothing and so restricts nothing.
    :param feature: name from `FEATURES`, or `SYSTEM_PROMPT`.
    """
    return (
        (group is None or _allows_group(scopes, group))
        and (model is None or _allows_model(scopes, model))
        and (feature is None or _allows_feature(scopes, feature))
    )


def opens_a_route(scopes: frozenset[str]) -> bool:
    """False for scopes that only restrict or decorate: such a key would be refused everywhere."""
    return ALL in scopes or not scopes.isdisjoint(ROUTE_GROUPS)


def _allows_group(scopes: frozenset[str], group: str) -> bool:
    return group in scopes or (ALL in scopes and group not in PRIVILEGED)


def _allows_feature(scopes: frozenset[str], feature: str) -> bool:
    if feature in PRIVILEGED:
        return feature in scopes
    return ALL in scopes or f"{FEATURE_PREFIX}{feature}" in scopes or f"{FEATURE_PREFIX}*" in scopes


def _allows_model(scopes: frozenset[str], model: str) -> bool:
    patterns = [s[len(MODEL_PREFIX) :] for s in scopes if s.startswith(MODEL_PREFIX)]
    if not patterns:
        return True
    # The name comes from the body: without a bound, matching it is work for the sender to order.
    return len(model) <= MAX_MODEL_CHARS and any(
        _is_pattern(pattern) and fnmatchcase(model, pattern) for pattern in patterns
    )


def _is_known(scope: str) -> bool:
    if scope.startswith(MODEL_PREFIX):
        return _is_pattern(scope[len(MODEL_PREFIX) :])
    if scope.startswith(FEATURE_PREFIX):
        name = scope[len(FEATURE_PREFIX) :]
        return name == ALL or name in FEATURES
    return scope == ALL or scope in PRIVILEGED or scope in ROUTE_GROUPS


def _is_pattern(text: str) -> bool:
    return (
        0 < len(text) <= MAX_PATTERN_CHARS
        and text.isprintable()
        and not any(char.isspace() for char in text)
    )
