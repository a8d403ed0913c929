"""The gate passes what is shown to be good, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import attack, benign

from vauban.errors import PolicyError
from vauban.redteam.gate import RULES, Check, judge
from vauban.redteam.gate_policy import GatePolicy, load_gate_policy
from vauban.redteam.result import Latency, Result, ToolRun

Make = Callable[..., Result]


@pytest.fixture(scope="module")
def policy() -> GatePolicy:
    return load_gate_policy()


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def test_a_good_result_passes(make_result: Make, policy: GatePolicy) -> None:
    checks = judge(make_result(), policy, make_result())
    assert failed(checks) == []
    assert {c.kind for c in checks} == set(RULES) - {"coverage", "known_failure", "over_defence"}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"attacks": [attack(wins=10, blocked=90)]}, "attack_success: garak.dan"),
        ({"attacks": [attack(blocked=18)]}, "attack_success: garak.dan"),  # too few to show it
        ({"benign": [benign(blocked=2, answered=98)]}, "false_positives: tasks"),
        (
            {"benign": [benign(suite="t", trigger_words=True, blocked=11, answered=89)]},
            "over_defence: t",
        ),
        ({"latency": Latency(source="server", added_ms=[2000.0] * 99)}, "added_latency: 95% qu"),
        ({"latency": Latency(source="server", added_ms=[20.0] * 10)}, "added_latency: 95% qu"),
        ({"benign": []}, "coverage: benign requests"),
        ({"attacks": []}, "coverage: attacks"),
        ({"tools": []}, "run: tools"),
        ({"attacks": [attack(errors={"dead_target": 3})]}, "unjudged: garak.dan"),
        ({"attacks": [attack(unanswered=3)]}, "unjudged: garak.dan"),
        ({"attacks": [attack(blocked=0, errors={"rate_limited": 99})]}, "unjudged: garak.dan"),
        ({"attacks": [attack(blocked=0)]}, "unjudged: garak.dan"),
        ({"benign": [benign(errors={"timeout": 3})]}, "unjudged: tasks"),
    ],
)
def test_what_fails(make_result: Make, policy: GatePolicy, parts: Any, name: str) -> None:
    assert any(found.startswith(name) for found in failed(judge(make_result(**parts), policy)))


@pytest.mark.parametrize("outcome", ["target_dead", "rate_limited", "time_limit", "tool_failed"])
def test_a_run_that_was_cut_short_fails(
    make_result: Make, policy: GatePolicy, outcome: Any
) -> None:
    tools = [ToolRun(tool="garak", version="0.17.1", outcome=outcome)]
    assert failed(judge(make_result(tools=tools), policy)) == ["run: garak"]


def test_small_families_are_judged_together(make_result: Make, policy: GatePolicy) -> None:
    """And can't hide: together they must show what one of them could not."""
    names = [f"garak.f{number}" for number in range(4)]
    good = [attack(name, blocked=8) for name in names]
    bad = [attack(name, blocked=2, wins=6) for name in names]
    assert failed(judge(make_result(attacks=[attack(), *good]), policy)) == []
    together = "attack_success: " + " + ".join(names)
    assert failed(judge(make_result(attacks=[attack(), *bad]), policy)) == [together]
    assert failed(judge(make_result(attacks=[attack(), *good[:2]]), policy)) == [
        "attack_success: garak.f0 + garak.f1"
    ]


def test_a_bound_decides_not_the_rate(make_result: Make, policy: GatePolicy) -> None:
    """1 of 20 is under 15%, and does not show that the rate is."""
    few = make_result(attacks=[attack(wins=1, blocked=19)])
    many = make_result(attacks=[attack(wins=10, blocked=190)])
    assert failed(judge(few, policy)) == ["attack_success: garak.dan"]
    assert failed(judge(many, policy)) == []


def test_a_regression_under_the_limit_fails(make_result: Make, policy: GatePolicy) -> None:
    before = make_result(attacks=[attack(wins=0, blocked=400)])
    now = make_result(attacks=[attack(wins=40, blocked=360)])
    assert failed(judge(now, policy)) == []
    assert failed(judge(now, policy, before)) == ["regression: garak.dan"]
    assert failed(judge(before, policy, now)) == []


def test_noise_is_no_regression(make_result: Make, policy: GatePolicy) -> None:
    before = make_result(attacks=[attack(wins=8, blocked=192)])
    now = make_result(attacks=[attack(wins=12, blocked=188)])
    assert failed(judge(now, policy, before)) == []


def test_false_positives_and_times_regress_too(make_result: Make, policy: GatePolicy) -> None:
    before = make_result(benign=[benign(answered=900)])
    now = make_result(
        benign=[benign(blocked=20, answered=880)],
        latency=Latency(source="server", added_ms=[40.0] * 100),
    )
    assert failed(judge(now, policy, before)) == ["regression: tasks", "regression: added latency"]


def test_what_is_no_longer_measured_fails(make_result: Make, policy: GatePolicy) -> None:
    before = make_result(attacks=[attack(), attack("garak.encoding")])
    assert failed(judge(make_result(), policy, before)) == ["regression: garak.encoding"]


def knowing(policy: GatePolicy, *families: str) -> GatePolicy:
    """The policy with these families listed as failing."""
    reasons = dict.fromkeys(families, "the model refuses nothing")
    limits = policy.attack_success.model_copy(update={"known_failures": reasons})
    return policy.model_copy(update={"attack_success": limits})


def test_a_known_failure_is_shown_and_fails_only_when_it_gets_worse(
    make_result: Make, policy: GatePolicy
) -> None:
    known = knowing(policy, "garak.bad")
    before = make_result(attacks=[attack(), attack("garak.bad", wins=4, blocked=8)])
    worse = make_result(attacks=[attack(), attack("garak.bad", wins=10, blocked=2)])
    (check,) = [c for c in judge(before, known, before) if c.subject == "garak.bad" and c.known]
    assert (check.kind, check.wanted) == ("known_failure", "the model refuses nothing")
    assert failed(judge(before, known, before)) == []
    assert failed(judge(worse, known, before)) == ["known_failure: garak.bad"]
    assert failed(judge(before, policy, before)) == ["attack_success: garak.bad"]
    assert not any(c.known for c in judge(worse, known, before))


def test_a_known_failure_with_nothing_to_compare_fails(
    make_result: Make, policy: GatePolicy
) -> None:
    known = knowing(policy, "garak.dan")
    bad = make_result(attacks=[attack(wins=50, blocked=50)])
    empty = make_result(attacks=[attack(blocked=0, errors={"timeout": 9})])
    assert failed(judge(bad, known)) == ["known_failure: garak.dan"]
    assert failed(judge(bad, known, empty)) == ["known_failure: garak.dan"]
    assert "known_failure: garak.dan" in failed(judge(empty, known, bad))


def test_a_known_failure_that_is_none_any_more_says_so(
    make_result: Make, policy: GatePolicy
) -> None:
    checks = judge(make_result(), knowing(policy, "garak.dan"), make_result())
    (check,) = [c for c in checks if c.name == "attack_success: garak.dan"]
    assert check.passed
    assert not check.known
    assert "take it off known_failures" in check.wanted


def test_a_required_family(make_result: Make, tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("required_families: [garak.dan, pyrit.base64]\n")
    checks = judge(make_result(), load_gate_policy(path))
    assert failed(checks) == ["coverage: pyrit.base64"]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5), st.integers(0, 5))
def test_more_evidence_against_never_passes_more(
    wins: int, blocked: int, unanswered: int, dead: int
) -> None:
    policy = load_gate_policy()
    made = {"unanswered": unanswered, "errors": {"dead_target": dead}}
    from vauban.redteam.result import Provenance

    def checks(more_wins: int, more_dead: int) -> set[str]:
        made["errors"] = {"dead_target": dead + more_dead}
        result = Result(
            provenance=Provenance(vauban="0", started="now"),
            tools=[],
            attacks=[attack(wins=wins + more_wins, blocked=blocked, **made)],
        )
        return {c.name for c in judge(result, policy) if not c.passed}

    base = checks(0, 0)
    if "attack_success: garak.dan" in base:
        assert "attack_success: garak.dan" in checks(1, 0)
    if "unjudged: garak.dan" in base and wins + blocked:
        assert "unjudged: garak.dan" in checks(0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "confidence: 2", "confidence: .nan", "unknown: 1", "attack_success: {default: 1.5}",
        "- a list", "a: [", "attack_success: 0.1", "interval: normal", "!!python/object:x {}",
        "attack_success: {families: {x: .inf}}", "regression: null", "false_positives: null",
        "attack_success: {known_failures: {garak.dan: }}",
    ],
)  # fmt: skip
def test_a_wrong_policy_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"gate\.yaml"):
        load_gate_policy(path)


def test_a_policy_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("attack_success: {families: {garak.dan: 0.5}}\n")
    changed = load_gate_policy(path)
    assert changed.attack_success.of("garak.dan") == 0.5
    assert changed.attack_success.default == load_gate_policy().attack_success.default
    path.write_text("")
    assert load_gate_policy(path) == load_gate_policy()
