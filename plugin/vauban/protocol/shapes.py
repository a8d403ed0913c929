"""Which protocol a request is written in."""

from __future__ import annotations

from enum import StrEnum


class Shape(StrEnum):
    """The protocol of a guarded route: where operator text goes and what a refusal looks like."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"
    TOKENS = "tokens"
    POOLING = "pooling"
    ANY = "any"
    """SageMaker's /invocations: the shape is read from the body."""
