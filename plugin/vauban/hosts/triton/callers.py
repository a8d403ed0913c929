"""Who calls a model of Triton: out of request parameters, which forwarded headers are too."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from vauban.access.identity import UNAUTHENTICATED, Identity, require_safe_bind
from vauban.errors import MalformedRequest, Unauthenticated
from vauban.policy import IdentityPolicy
from vauban.types import Principal, PrincipalKind, RateLimit

BIND_VARIABLE = "VAUBAN_TRITON_BIND"
HEADERS = ("authorization", "x-api-key", "x-vauban-principal")
FORWARD_PATTERN = f"(?i)({'|'.join(HEADERS)})"
"""For tritonserver's --http-header-forward-pattern and --grpc-header-forward-pattern."""

_NAME = re.compile(r"[!-~]{1,128}")


class Callers:
    """
    A credential is as good in a parameter as in a header: it is checked. A bare name is believed
    only under `identity.trusted_network`.

    :raises ConfigError: strangers could reach the server and no key is configured. A model can't
        see what its server listens on; `vauban triton serve` says it in the environment.
    """

    def __init__(
        self, policy: IdentityPolicy, identity: Identity, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._trusted = policy.trusted_network
        self._identity = identity
        self._limit = RateLimit(policy.requests_per_min, policy.tokens_per_min)
        self._scopes = frozenset(policy.anonymous_scopes)
        if not self._trusted:
            require_safe_bind(identity, environ.get(BIND_VARIABLE))

    def authenticate(self, parameters: Mapping[str, str], named: str | None) -> Principal:
        """
        :param parameters: by name in lower case.
        :param named: what the tensor `principal` says.
        :raises Unauthenticated: no valid credential, or no name on a trusted network.
        :raises MalformedRequest: a name, and the policy does not trust the network.
        """
        names = {name for name in (parameters.get("x-vauban-principal"), named) if name is not None}
        if not self._trusted:
            if names:
                raise MalformedRequest(
                    "who is calling is not taken from the request: identity.trusted_network is off",
                    param="principal",
                )
            return self._identity.authenticate(
                authorization=parameters.get("authorization"),
                api_key=parameters.get("x-api-key"),
                client_host=None,
            )
        if len(names) != 1 or not _NAME.fullmatch(name := names.pop()):
            raise Unauthenticated(UNAUTHENTICATED)
        return Principal(f"gateway:{name}", PrincipalKind.KEY, self._scopes, self._limit)
