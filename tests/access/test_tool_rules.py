"""What may be called: the order of decisions, the default policy, and each kind of rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.tool_rules import ToolDecision, ToolRules, Why
from vauban.errors import PolicyError
from vauban.policy_sources import load_policy
from vauban.policy_tools import ToolsPolicy

ALLOW, ASK, DENY = ToolDecision
ACTIONS = st.sampled_from(["allow", "ask", "deny"])


def rules(**fields: Any) -> ToolRules:
    return ToolRules(ToolsPolicy.model_validate(fields))


def judged(given: ToolRules, name: str, arguments: Any = None, *, tainted: bool = False) -> Any:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    ruling = given.judge(name, text, tainted=tainted)
    return ruling.decision, ruling.why


def test_without_rules_ordinary_tools_pass_and_destructive_ones_ask() -> None:
    default = rules()
    for tainted in (False, True):
        assert judged(default, "get_weather", "not even JSON", tainted=tainted) == (
            ALLOW, Why.DEFAULT
        )  # fmt: skip
        assert judged(default, "sendEmail", {"to": "x"}, tainted=tainted) == (ASK, Why.DESTRUCTIVE)
    assert judged(default, "send_email", '{"to":1,"to":2}') == (DENY, Why.NOT_JSON)
    assert judged(rules(destructive="deny"), "send_email") == (DENY, Why.DESTRUCTIVE)
    assert judged(rules(destructive="allow"), "send_email", "no JSON") == (ALLOW, Why.DEFAULT)


def test_once_there_are_rules_what_has_none_is_denied() -> None:
    strict = rules(rules={"get_weather": {"action": "allow"}})
    assert judged(strict, "getWeather") == (ALLOW, Why.RULE)
    assert judged(strict, "read_file") == (DENY, Why.UNLISTED)
    loose = rules(rules={"get_weather": {"action": "allow"}}, unlisted="allow")
    assert judged(loose, "read_file") == (ALLOW, Why.DEFAULT)
    assert judged(loose, "send_email") == (ASK, Why.DESTRUCTIVE)


def test_a_rule_says_nothing_good_of_another_servers_tool() -> None:
    table = {"read_file": {"action": "allow"}, "delete_file": {"action": "deny"}}
    strict, loose = rules(rules=table), rules(rules=table, unlisted="allow")
    assert judged(strict, "mcp__evil__read_file") == (DENY, Why.UNLISTED)
    assert judged(loose, "mcp__evil__delete_file") == (DENY, Why.RULE)
    assert judged(loose, "evil.read_file") == (ALLOW, Why.DEFAULT)
    named = rules(rules={"mcp__files__read_file": {"action": "allow"}})
    assert judged(named, "mcp__files__read_file") == (ALLOW, Why.RULE)


def test_a_tainted_call_needs_more() -> None:
    table = {
        "send_email": {"action": "allow"},
        "read_file": {"action": "allow", "tainted": "allow"},
        "pay": {"action": "ask", "tainted": "deny"},
    }
    given = rules(rules=table)
    assert judged(given, "send_email") == (ALLOW, Why.RULE)
    assert judged(given, "send_email", tainted=True) == (ASK, Why.TAINTED)
    assert judged(given, "read_file", tainted=True) == (ALLOW, Why.RULE)
    assert judged(given, "pay") == (ASK, Why.RULE)
    assert judged(given, "pay", tainted=True) == (DENY, Why.TAINTED)


@pytest.mark.parametrize(
    ("rule", "good", "bad", "why"),
    [
        ({"recipients": {"to": "example.org"}}, {"to": "a@example.org"}, {"to": "a@x.test"},
         Why.RECIPIENT),
        ({"recipients": {"mail.to": ["example.org"]}}, {"mail": {"to": ["a@example.org"]}},
         {"mail": {"to": ["a@example.org", "b@x.test"]}}, Why.RECIPIENT),
        ({"amounts": {"amount": 50}}, {"amount": 50}, {"amount": 50.5}, Why.AMOUNT),
        ({"paths": {"path": "/srv/data"}}, {"path": "/srv/data/x"}, {"path": "/etc/passwd"},
         Why.PATH),
        ({"arguments": {"type": "object", "required": ["a"], "additionalProperties": False,
                        "properties": {"a": {"enum": [1]}}}}, {"a": 1}, {"a": 1, "b": 2},
         Why.SCHEMA),
    ],
)  # fmt: skip
def test_rules_over_arguments(rule: dict[str, Any], good: Any, bad: Any, why: Why) -> None:
    given = rules(rules={"t": {"action": "allow", **rule}})
    assert judged(given, "t", good) == (ALLOW, Why.RULE)
    assert judged(given, "t", bad) == (DENY, why)
    asks = rules(rules={"t": {"action": "allow", "otherwise": "ask", **rule}})
    assert judged(asks, "t", bad) == (ASK, why)


def test_arguments_are_bounded_and_canonical() -> None:
    given = rules(rules={"t": {"action": "ask"}}, max_call_bytes=256)
    assert judged(given, "t", {"a": "x" * 300}) == (DENY, Why.TOO_LARGE)
    assert judged(given, "t", json.dumps({"a": "é" * 100}, ensure_ascii=False)) == (
        DENY, Why.TOO_LARGE
    )  # fmt: skip
    assert given.judge("t", ' {"b": 1,\n"a": "\u202e"}', tainted=False).arguments == (
        '{"a":"\\u202e","b":1}'
    )
    assert judged(given, "t" * 300) == (DENY, Why.NAME)


@given(
    base=ACTIONS,
    unlisted=ACTIONS,
    destructive=ACTIONS,
    name=st.sampled_from(["send", "look", "x.look"]),
    amount=st.none() | st.floats(0, 10),
    limit=st.floats(0, 10),
    otherwise=st.sampled_from(["ask", "deny"]),
)
def test_more_against_a_call_never_makes_it_freer(
    base: str, unlisted: str, destructive: str, name: str, amount: float | None, limit: float,
    otherwise: str,
) -> None:  # fmt: skip
    fields: dict[str, Any] = {"unlisted": unlisted, "destructive": destructive}
    entry = {"action": base}
    plainly = rules(**fields, rules={"look": entry})
    bounded = rules(
        **fields, rules={"look": {**entry, "amounts": {"a": limit}, "otherwise": otherwise}}
    )
    text = json.dumps({} if amount is None else {"a": amount})
    for table in (plainly, bounded):
        clean = table.judge(name, text, tainted=False).decision
        assert table.judge(name, text, tainted=True).decision >= clean
    for tainted in (False, True):
        free = plainly.judge(name, text, tainted=tainted).decision
        assert bounded.judge(name, text, tainted=tainted).decision >= free


@given(name=st.text(max_size=30), arguments=st.text(max_size=60), tainted=st.booleans())
def test_any_call_is_judged(name: str, arguments: str, tainted: bool) -> None:
    for table in (rules(), rules(rules={"a": {"paths": {"p": "/x"}}}, unlisted="ask")):
        ruling = table.judge(name, arguments, tainted=tainted)
        assert ruling.arguments.isascii()


@pytest.mark.parametrize(
    "rule",
    [{"arguments": {"type": 7}}, {"arguments": {"$ref": "http://127.0.0.1/schema"}},
     {"arguments": {"allOf": [{"$ref": "file:///etc/passwd"}]}}, {"paths": {"p": "data"}},
     {"paths": {"p": "/srv/../etc"}}, {"action": "perhaps"}, {"otherwise": "allow"}, {"x": 1}],
)  # fmt: skip
def test_a_wrong_rule_stops_the_start(rule: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="tools"):
        load_policy({"tools": {"rules": {"t": rule}}}, environ={})


def test_two_rules_for_one_tool_stop_the_start() -> None:
    with pytest.raises(PolicyError, match="sendEmail"):
        rules(rules={"send_email": {}, "sendEmail": {}})


def test_rules_from_a_file_and_from_flags() -> None:
    loaded = load_policy(
        {"tools": {"rules": {"send": {"recipients": {"to": "example.org"}}}}},
        environ={"VAUBAN_TOOLS__UNLISTED": "ask"},
    )
    assert loaded.policy.tools.rules["send"].recipients == {"to": ("example.org",)}
    assert loaded.policy.tools.digest != ToolsPolicy().digest
