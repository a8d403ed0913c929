from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.scopes import (
    ADMIN,
    FEATURES,
    MAX_MODEL_CHARS,
    PRIVILEGED,
    ROUTE_GROUPS,
    SYSTEM_PROMPT,
    allows,
    known_scopes,
    opens_a_route,
    parse_scopes,
)
from vauban.errors import ConfigError

VALID = [
    "*",
    *ROUTE_GROUPS,
    SYSTEM_PROMPT,
    "feature:*",
    *(f"feature:{name}" for name in FEATURES),
    "model:small",
    "model:org/*",
]
scope_sets = st.frozensets(st.sampled_from(VALID))


def test_star_covers_all_groups_and_features_but_the_privileged() -> None:
    star = parse_scopes(["*"])
    assert all(allows(star, group=g) for g in set(ROUTE_GROUPS) - PRIVILEGED)
    assert all(allows(star, feature=f) for f in FEATURES)
    assert allows(star, model="any/model")
    assert not allows(star, group=ADMIN)
    assert not allows(star, feature=SYSTEM_PROMPT)


@given(scope_sets)
def test_privileged_scopes_are_given_by_name_only(scopes: frozenset[str]) -> None:
    assert allows(scopes, group=ADMIN) == (ADMIN in scopes)
    assert allows(scopes, feature=SYSTEM_PROMPT) == (SYSTEM_PROMPT in scopes)


def test_all_features_do_not_include_the_system_prompt() -> None:
    assert not allows(parse_scopes(["chat", "feature:*"]), feature=SYSTEM_PROMPT)


def test_nothing_opens_nothing() -> None:
    assert not any(allows(frozenset(), group=g) for g in ROUTE_GROUPS)
    assert not any(allows(frozenset(), feature=f) for f in FEATURES)


@given(scope_sets, st.sampled_from(sorted(ROUTE_GROUPS)), st.text(max_size=10))
def test_everything_asked_must_be_covered(scopes: frozenset[str], group: str, model: str) -> None:
    both = allows(scopes, group=group, model=model, feature="tools")
    one_by_one = (
        allows(scopes, group=group)
        and allows(scopes, model=model)
        and allows(scopes, feature="tools")
    )
    assert both == one_by_one


@given(scope_sets, st.sampled_from(sorted(ROUTE_GROUPS)), st.sampled_from(sorted(FEATURES)))
def test_more_scopes_never_take_away_routes_or_features(
    scopes: frozenset[str], group: str, feature: str
) -> None:
    more = scopes | {"chat", "feature:tools", "model:x"}
    assert allows(more, group=group) >= allows(scopes, group=group)
    assert allows(more, feature=feature) >= allows(scopes, feature=feature)


def test_model_scopes_restrict_once_one_is_present() -> None:
    assert allows(parse_scopes(["chat"]), model="big")
    small = parse_scopes(["*", "model:small-*", "model:org/Tiny"])
    assert allows(small, group="chat", model="small-1")
    assert allows(small, model="org/Tiny")
    assert not allows(small, model="org/tiny")  # names are case-sensitive
    assert not allows(small, model="big")
    assert not allows(small, model="")


def test_a_long_model_name_is_not_matched() -> None:
    assert not allows(parse_scopes(["*", "model:*"]), model="a" * (MAX_MODEL_CHARS + 1))


def test_a_hostile_name_is_matched_in_linear_steps() -> None:
    scopes = parse_scopes(["*", "model:" + "*a" * 100 + "b"])
    assert not allows(scopes, model="a" * MAX_MODEL_CHARS)


@pytest.mark.parametrize(
    "scope",
    [
        "",
        "Chat",
        "chta",
        "modle:x",
        "model:",
        "model:a b",
        "model:a\nb",
        "model:" + "a" * 257,
        "feature:",
        "feature:tool",
        "prompt:user",
        "prompt:*",
        "* ",
        "admin:*",
        "chat\n",
    ],
)
def test_unknown_scopes_are_an_error_for_the_operator(scope: str) -> None:
    with pytest.raises(ConfigError):
        parse_scopes(["chat", scope])


@given(st.lists(st.one_of(st.sampled_from(VALID), st.text(max_size=20)), max_size=6))
def test_the_two_readings_agree(values: list[str]) -> None:
    known = known_scopes(values)
    if not any(v.startswith("model:") for v in values):
        assert parse_scopes(known) == known
    try:
        assert parse_scopes(values) == known
    except ConfigError:
        assert known != frozenset(values) or any(v.startswith("model:") for v in values)


def test_an_unreadable_model_scope_of_a_token_restricts_to_nothing() -> None:
    scopes = known_scopes(["*", "model:" + "a" * 300, "openid"])
    assert "openid" not in scopes
    assert not allows(scopes, model="a" * 300)


@given(scope_sets)
def test_opens_a_route_says_whether_any_group_is_open(scopes: frozenset[str]) -> None:
    assert opens_a_route(scopes) == any(allows(scopes, group=g) for g in ROUTE_GROUPS)
