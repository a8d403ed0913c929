"""What a client of Triton gets when a request is not served. The one table of this host."""

from __future__ import annotations

import logging
from enum import StrEnum

from vauban.errors import RequestError, VaubanError
from vauban.guard import blocked_sentence
from vauban.types import Reason

logger = logging.getLogger(__name__)


class Code(StrEnum):
    """Names in Triton's `TritonError`; HTTP status in the comment."""

    INVALID_ARG = "INVALID_ARG"  # 400
    NOT_FOUND = "NOT_FOUND"  # 404
    UNAVAILABLE = "UNAVAILABLE"  # 503
    INTERNAL = "INTERNAL"  # 500


_CODES = {
    400: Code.INVALID_ARG,
    401: Code.INVALID_ARG,  # Triton has no code for either of these two
    403: Code.INVALID_ARG,
    404: Code.NOT_FOUND,
    408: Code.UNAVAILABLE,
    413: Code.INVALID_ARG,
    429: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
}


class Blocked(RequestError):
    """The verdict is to block, and the policy answers that with an error."""

    code = "content_filter"

    def __init__(self, reason: Reason) -> None:
        super().__init__(blocked_sentence(reason))
        self.reason = reason


class Failed(VaubanError):
    """What the client is told. `code`: a name in Triton's `TritonError`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def failed(error: Exception) -> Failed:
    """The message of a fault of ours may hold text, so only its kind is told, in the log."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, RequestError):
        return Failed(*error_of(error))
    logger.error("a request failed: %s", type(error).__name__)
    return Failed("[internal_error] the request failed", Code.INTERNAL)


def error_of(error: RequestError, request_id: str = "") -> tuple[str, Code]:
    """Message and code for a `TritonError`. The message begins with the reason code in brackets.

    Triton puts the names of the models that an error came through before it.
    """
    code = error.reason.value if isinstance(error, Blocked) else error.code
    named = f" (request {request_id})" if request_id else ""
    return f"[{code}] {error.message}{named}", _CODES.get(error.status, Code.INTERNAL)
