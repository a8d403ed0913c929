"""Every error has its place in the tree, and every one for a client has a status and a code."""

from __future__ import annotations

import inspect

import pytest

from vauban import errors
from vauban.errors import (
    AttackError,
    ConfigError,
    RateLimited,
    RedTeamError,
    RequestError,
    SandboxError,
    ScreeningFailed,
    StateUnavailable,
    TooManyApprovals,
    VaubanError,
)

ALL = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, VaubanError)]
FOR_CLIENTS = [e for e in ALL if issubclass(e, RequestError)]


def test_the_tree_is_complete() -> None:
    tops = (
        ConfigError, RequestError, ScreeningFailed, StateUnavailable, TooManyApprovals,
        AttackError, RedTeamError, SandboxError,
    )  # fmt: skip
    assert all(issubclass(e, tops) or e is VaubanError for e in ALL)
    drawn = errors.__doc__ or ""
    assert all(e.__name__ in drawn for e in ALL)


@pytest.mark.parametrize("error", ALL)
def test_every_error_says_when(error: type[VaubanError]) -> None:
    assert error.__doc__


@pytest.mark.parametrize("error", FOR_CLIENTS)
def test_what_a_client_gets(error: type[RequestError]) -> None:
    made = error("what is wrong")
    assert 400 <= made.status < 600
    assert made.code
    assert made.message == str(made) == "what is wrong"


def test_codes_tell_errors_apart() -> None:
    codes = [e.code for e in FOR_CLIENTS]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(("given", "told"), [(-5, 1), (0, 1), (1, 1), (60, 60)])
def test_a_rate_limit_says_when_to_come_back(given: int, told: int) -> None:
    assert RateLimited("slow down", retry_after_s=given).retry_after_s == told
