"""Every error that a request can end with has a code of Triton's."""

from __future__ import annotations

import pytest

from vauban import errors
from vauban.errors import RequestError
from vauban.hosts.triton.answers import Blocked, Code, error_of
from vauban.types import Reason

ALL = [
    kind for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError)
]  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_mapped(kind: type[RequestError]) -> None:
    message, code = error_of(kind("what happened"), "r1")
    assert message == f"[{kind.code}] what happened (request r1)"
    assert code is not Code.INTERNAL or kind.status >= 500


@pytest.mark.parametrize("reason", Reason)
def test_a_block_carries_its_reason(reason: Reason) -> None:
    message, code = error_of(Blocked(reason))
    assert message.startswith(f"[{reason.value}] The request was blocked")
    assert code is Code.INVALID_ARG
