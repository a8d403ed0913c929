"""Whose a stored response is.

With VLLM_ENABLE_RESPONSES_API_STORE, vLLM keeps responses and gives each to whoever names its id.
Here the id itself says whose it is: it is random, and sealed together with its owner. Nothing has
to be remembered, so nothing grows or is forgotten under load, and all API servers of one server
agree. Whatever does not open under the caller's name is answered as an id that nobody has.

Covers: reading, cancelling and continuing (`previous_response_id`) a response of another
principal, and ids from before a restart, which brings a new secret. Does not cover: anonymous
callers behind one address, who are one principal; the memory of vLLM's own store.
"""

from __future__ import annotations

import hmac
import re
import secrets

from vauban.errors import NotFound
from vauban.mark import Sealer
from vauban.types import Principal

_RANDOM_BYTES = 16
_TAG_BYTES = 16
_ID = re.compile(rf"resp_([0-9a-f]{{{2 * _RANDOM_BYTES}}})([0-9a-f]{{{2 * _TAG_BYTES}}})")
_PURPOSE = b"response"


class ResponseIds:
    """Makes ids of responses and tells whose they are."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def new(self, owner: Principal) -> str:
        drawn = secrets.token_hex(_RANDOM_BYTES)
        return f"resp_{drawn}{self._tag(drawn, owner)}"

    def check(self, response_id: object, caller: Principal, *, param: str) -> None:
        """:raises NotFound: not an id that was made for this caller."""
        found = _ID.fullmatch(response_id) if isinstance(response_id, str) else None
        if found is None or not hmac.compare_digest(found[2], self._tag(found[1], caller)):
            raise NotFound("there is no response with this id", param=param)

    def _tag(self, drawn: str, owner: Principal) -> str:
        data = f"{drawn} {owner.kind} {owner.id}".encode("utf-8", "surrogatepass")
        return self._sealer.tag(_PURPOSE, data)[:_TAG_BYTES].hex()
