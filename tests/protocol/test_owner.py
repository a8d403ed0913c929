"""Salts and canaries follow from who calls, and from nothing that a caller says."""

from __future__ import annotations

from typing import Any

import pytest

from vauban.mark import Sealer
from vauban.policy_output import OutputPolicy
from vauban.protocol.owner import Owners, place_canary, without_canary
from vauban.protocol.shapes import Shape
from vauban.types import Principal, PrincipalKind

ALICE = Principal("alice", PrincipalKind.KEY, group="acme")
BOB = Principal("bob", PrincipalKind.KEY, group="acme")
EVE = Principal("eve", PrincipalKind.KEY)
SALTED = (Shape.CHAT, Shape.COMPLETION, Shape.RESPONSES, Shape.ANTHROPIC, Shape.TOKENS)


def owners(secret: bytes = b"s" * 32, **fields: Any) -> Owners:
    return Owners(Sealer(secret), OutputPolicy(**fields))


def salt(caller: Principal, own: Any = None, shape: Shape = Shape.CHAT, **fields: Any) -> Any:
    data = {} if own is None else {"cache_salt": own}
    owners(**fields).salt(data, shape, caller)
    return data.get("cache_salt")


@pytest.mark.parametrize("shape", SALTED)
def test_each_caller_has_a_salt(shape: Shape) -> None:
    assert salt(ALICE, shape=shape) == salt(ALICE, shape=shape)
    assert len({salt(who, shape=shape) for who in (ALICE, BOB, EVE)}) == 3
    assert 16 < len(salt(ALICE, shape=shape)) <= 128
    assert not set(salt(ALICE, shape=shape)) & set("@/\\\0")


def test_a_name_is_not_an_identity() -> None:
    other_kind = Principal("alice", PrincipalKind.JWT, group="acme")
    assert salt(other_kind) != salt(ALICE)
    mine = {}
    owners(b"t" * 32).salt(mine, Shape.CHAT, ALICE)
    assert mine["cache_salt"] != salt(ALICE)


def test_a_clients_salt_divides_what_is_his() -> None:
    assert len({salt(ALICE), salt(ALICE, "a"), salt(ALICE, "b"), salt(BOB, "a")}) == 4
    assert salt(EVE, salt(ALICE)) != salt(ALICE)
    assert salt(EVE, 5) == 5  # for vLLM to refuse


def test_groups_share_by_policy() -> None:
    assert salt(ALICE, cache_salt="group") == salt(BOB, cache_salt="group")
    assert salt(EVE, cache_salt="group") == salt(EVE)
    assert salt(ALICE, cache_salt="group") != salt(ALICE)
    assert salt(Principal("x", PrincipalKind.KEY, group=""), cache_salt="group") != salt(
        Principal("", PrincipalKind.KEY, group="x"), cache_salt="group"
    )


def test_off_leaves_the_clients_own() -> None:
    assert salt(ALICE, cache_salt="off") is None
    assert salt(ALICE, "mine", cache_salt="off") == "mine"
    assert salt(ALICE, shape=Shape.POOLING) is None


def test_canaries() -> None:
    made = owners()
    one = made.canary(ALICE, "r1")
    assert one is not None
    assert one == made.canary(ALICE, "r2")
    assert one != made.canary(BOB, "r1")
    assert len(one) == 16
    each = owners(place_canary="request")
    assert each.canary(ALICE, "r1") != each.canary(ALICE, "r2")
    assert owners(place_canary="off").canary(ALICE, "r") is None
    assert owners(canary="off").canary(ALICE, "r") is None


SYSTEM = {"role": "system", "content": "You are."}
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (Shape.CHAT, {"messages": [dict(SYSTEM), dict(USER)]}),
        (Shape.CHAT, {"messages": [[dict(SYSTEM), dict(USER)], [dict(USER)]]}),
        (Shape.CHAT, {"messages": [{**SYSTEM, "content": [{"type": "text", "text": "a"}]}]}),
        (Shape.ANTHROPIC, {"system": "You are."}),
        (Shape.ANTHROPIC, {"system": [{"type": "text", "text": "You are."}]}),
        (Shape.RESPONSES, {"instructions": "You are.", "input": "x"}),
        (Shape.RESPONSES, {"input": [dict(SYSTEM), dict(USER)]}),
    ],
)
def test_a_canary_is_placed_once_behind_the_operators_text(shape: Shape, body: Any) -> None:
    place_canary(body, shape, "canary7canary7")
    assert str(body).count("[ref canary7canary7]") == 1
    assert "hi\\n[ref" not in str(body)


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (Shape.CHAT, {"messages": [dict(USER)]}), (Shape.CHAT, {}), (Shape.CHAT, {"messages": []}),
        (Shape.ANTHROPIC, {}), (Shape.RESPONSES, {"input": "x"}),
        (Shape.COMPLETION, {"prompt": "x"}),
    ],
)  # fmt: skip
def test_without_operator_text_there_is_none(shape: Shape, body: Any) -> None:
    place_canary(body, shape, "canary7canary7")
    assert "canary7" not in str(body)


def test_what_an_answer_repeats_has_no_canary() -> None:
    data = {"instructions": "Serve the harbour.\n[ref mine]"}
    assert owners().place(data, Shape.RESPONSES, ALICE, "r")
    assert data["instructions"] != "Serve the harbour.\n[ref mine]"
    assert without_canary(data["instructions"]) == "Serve the harbour.\n[ref mine]"
    assert without_canary(None) is None
