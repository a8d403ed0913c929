"""Every error vauban raises on purpose, and when.

VaubanError
├── ConfigError            the operator's settings are wrong; the server must not start
│   ├── PolicyError        a policy field has a bad value, or does not exist
│   └── WeightsError       a model file is missing, damaged or of the wrong shape
├── RequestError           this request can't be served; the client gets `status` and `code`
│   ├── MalformedRequest   the body is not what the route takes
│   ├── RequestTooLarge    the body or its text is over a limit
│   ├── RequestTimeout     the body did not arrive in time
│   ├── Unauthenticated    no valid credential
│   ├── Forbidden          the credential does not cover this
│   ├── RouteRefused       the route table does not open this route
│   ├── NotFound           what is asked for does not exist, or is somebody else's
│   ├── Banned             the principal is banned, until a time that is told
│   ├── HeldForReview      the principal is held until an operator decides
│   ├── ApprovalRefused    an approval can't be given, or not be used
│   ├── RateLimited        a limit of the principal is used up
│   ├── Overloaded         a bounded queue is full
│   ├── StandingUnknown    how the principal is to be treated can't be read now
│   ├── ApprovalsLost      the store of approvals can't be used now
│   └── UnreadableAnswer   the model server's answer can't be read, so it can't be let through
├── ScreeningFailed        a detector could not judge; `guard.py` turns it into a verdict
├── TooManyApprovals       a call can't be kept for approval; it is denied
├── StateUnavailable       the store can't be used now; `guard.py` says what that means
├── AttackError            adversarial training was asked for something it can't compute
├── SandboxError           code can't be run in isolation, so it is not run
│   ├── ImageError         the guest's image is missing, changed or can't be built
│   ├── NoIsolation        the machine has no isolation that the policy accepts
│   ├── BadJob             a program, or a file for it, is too large or badly named
│   ├── SandboxBusy        too many programs wait already
│   └── GuestFailed        the virtual machine died, hung, or answered nonsense
└── RedTeamError           a red team run could not be made or did not come to its end
    ├── ReportError        a result or a tool's report is truncated, hostile or of another version
    └── ToolFailed         a tool could not be installed or started, or ended with an error

One table per host maps `RequestError` to the wire; nothing else reaches a client.
Messages never contain prompt text, keys or tool arguments.
"""

from __future__ import annotations

from typing import ClassVar


class VaubanError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(VaubanError):
    """The operator's settings are wrong; the server must not start."""


class PolicyError(ConfigError):
    """A policy field has a bad value or does not exist; the message names its path."""


class WeightsError(ConfigError):
    """A model file is missing, damaged or of the wrong shape."""


class ScreeningFailed(VaubanError):
    """A detector could not judge. Only `guard.py` decides what that means."""


class StateUnavailable(VaubanError):
    """The store did not answer in time, or not what was asked. Only `guard.py` decides what that
    means for a request."""


class TooManyApprovals(VaubanError):
    """A call can't be kept for approval: its caller has asked too often, or too much is kept."""


class AttackError(VaubanError):
    """An attack on a model, or a training step on one, can't be computed from what it was given."""


class SandboxError(VaubanError):
    """Code can't be run in isolation, so it is not run."""


class ImageError(SandboxError):
    """The guest's image is missing, was changed, or can't be built."""


class NoIsolation(SandboxError):
    """The machine has no isolation that the policy accepts; says why for each kind."""


class BadJob(SandboxError):
    """A program, or a file for it, is over a limit or badly named."""


class SandboxBusy(SandboxError):
    """Too many programs run or wait already."""


class GuestFailed(SandboxError):
    """The virtual machine died, hung, or answered something that is no answer."""


class RedTeamError(VaubanError):
    """A red team run could not be made, or did not come to its end."""


class ReportError(RedTeamError):
    """A result or a tool's report is truncated, hostile or of another version; says which."""


class ToolFailed(RedTeamError):
    """A tool could not be installed or started, or ended with an error."""


class RequestError(VaubanError):
    """This request can't be served. The message is shown to the client."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class MalformedRequest(RequestError):
    """The body is not what the route takes."""

    code = "malformed_request"


class RequestTooLarge(RequestError):
    """The body, or the text in it, is over a limit of the policy."""

    status = 413
    code = "request_too_large"


class RequestTimeout(RequestError):
    """The body did not arrive within the policy's time."""

    status = 408
    code = "request_timeout"


class Unauthenticated(RequestError):
    """No credential, an unknown one, or an expired one."""

    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    """The credential is valid and does not cover this route, model or feature."""

    status = 403
    code = "insufficient_scope"


class RouteRefused(RequestError):
    """The route table does not open this route."""

    status = 404
    code = "route_refused"


class NotFound(RequestError):
    """What is asked for does not exist or is somebody else's; the answer does not tell which."""

    status = 404
    code = "not_found"


class ApprovalRefused(RequestError):
    """An approval can't be given by this credential, or not be used: it has been, or what it was
    given for has changed."""

    status = 403
    code = "approval_refused"


class RateLimited(RequestError):
    """A rate limit of the principal is used up.

    :param retry_after_s: seconds until the window has room again, at least 1.
    """

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, retry_after_s)


class Banned(RequestError):
    """The principal is banned.

    :param retry_after_s: seconds until the ban ends, at least 1; None = it has no end.
    """

    status = 403
    code = "banned"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = None if retry_after_s is None else max(1, retry_after_s)


class HeldForReview(RequestError):
    """The principal is held: not served until an operator has decided."""

    status = 403
    code = "held_for_review"


class StandingUnknown(RequestError):
    """The store is lost, so how the principal is to be treated is not known; not served."""

    status = 503
    code = "state_unavailable"
    retry_after_s: ClassVar[int] = 5


class ApprovalsLost(RequestError):
    """The store of approvals can't be used now, so nothing is released or decided."""

    status = 503
    code = "approvals_unavailable"
    retry_after_s: ClassVar[int] = 5


class Overloaded(RequestError):
    """A bounded queue of the guard is full; the request was not served."""

    status = 503
    code = "overloaded"


class UnreadableAnswer(RequestError):
    """The model server's answer can't be read, so it can't be let through."""

    status = 502
    code = "unreadable_answer"
