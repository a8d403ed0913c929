"""The command line of a server: closed to strangers, and to Triton's own side doors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vauban.errors import ConfigError
from vauban.hosts.triton.callers import BIND_VARIABLE, FORWARD_PATTERN
from vauban.hosts.triton.server import ADMIN_VARIABLE, Ports, Server, server_command
from vauban.mark import SECRET_VARIABLE
from vauban.policy import Policy

SERVER = Server(Path("/s/tritonserver"), Path("/s/backends"), Path("/env"), (Path("/libs"),))


def command(policy: Policy, address: str = "127.0.0.1", **environ: str):  # type: ignore[no-untyped-def]
    return server_command(
        SERVER, Path("/models"), policy, address=address, ports=Ports(1, 2, 3), environ=environ
    )


def test_the_server_is_told_where_it_listens_and_shares_a_secret() -> None:
    arguments, environ = command(Policy(), PATH="/bin")
    assert "--http-address=127.0.0.1" in arguments
    assert environ[BIND_VARIABLE] == "127.0.0.1"
    assert len(bytes.fromhex(environ[SECRET_VARIABLE])) == 32
    assert environ["PATH"] == "/env/bin:/bin"
    assert environ["LD_LIBRARY_PATH"] == "/libs"


def test_without_keys_it_stays_on_loopback() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        command(Policy(), "0.0.0.0")  # noqa: S104
    open_to_all = Policy.model_validate({"identity": {"trusted_network": True}})
    command(open_to_all, "0.0.0.0")  # noqa: S104


def test_a_secret_and_an_admin_key_of_the_operators_are_kept() -> None:
    given = {SECRET_VARIABLE: "ab" * 32, ADMIN_VARIABLE: "let-me-in"}
    arguments, environ = command(Policy(), **given)
    assert environ[SECRET_VARIABLE] == "ab" * 32
    assert ADMIN_VARIABLE not in environ
    restricted = [a for a in arguments if "restricted" in a]
    assert len(restricted) == 2
    for argument in restricted:
        assert argument.endswith("=let-me-in")
        assert "shared-memory" in argument
        assert "model-repository" in argument


def test_headers_that_say_who_calls_are_given_on() -> None:
    pattern = re.compile(FORWARD_PATTERN)
    assert all(pattern.fullmatch(n) for n in ("Authorization", "x-api-key", "X-Vauban-Principal"))
    assert not pattern.fullmatch("cookie")
