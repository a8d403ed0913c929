"""Results of real runs of garak and PyRIT, which the gate must fail where a stage is off.

`quick.json` has both: `vauban redteam all --profile quick --baseline URL`, a real vLLM from
`vauban redteam target --guard on` and one with `--guard off`; the target is scripted, no language
model. The others are runs of the profile `ci`.
"""

from __future__ import annotations

from pathlib import Path

from vauban.redteam.gate import families, judge
from vauban.redteam.gate_policy import load_gate_policy
from vauban.redteam.result import Result, read_result

GOLDEN = Path(__file__).parent / "golden"
QUICK = GOLDEN / "quick.json"
CI_ON, CI_CLASSIFIER_OFF = GOLDEN / "ci-guard-on.json", GOLDEN / "ci-classifier-off.json"
CI_POLICY = GOLDEN.parent / "gate-ci.yaml"


def without_guard() -> Result:
    """What `quick.json` says of the model without the guard, as a result of its own."""
    both = read_result(QUICK)
    other = both.unguarded
    assert other is not None
    parts = {"tools": other.tools, "attacks": other.attacks, "benign": other.benign}
    return both.model_copy(update={**parts, "latency": None, "unguarded": None})


def test_with_every_stage_off_the_gate_fails() -> None:
    result = without_guard()
    failed = {c.name for c in judge(result, load_gate_policy()) if not c.passed}
    assert any(name.startswith("attack_success: garak.latentinjection") for name in failed)
    # What passes shows that it fails for the attacks alone: it ran well and blocked nobody.
    assert not any(name.startswith(("run", "unjudged", "false_pos", "over_def")) for name in failed)
    assert not any(row.blocked for row in result.attacks)


def test_the_target_can_lose() -> None:
    found = families(without_guard())
    for name in ("garak.promptinject", "pyrit.direct", "pyrit.base64", "pyrit.unicode_tags"):
        assert all(row.wins == row.attempts for row in found[name])


def test_the_recorded_result_names_its_target() -> None:
    provenance = read_result(QUICK).provenance
    assert provenance.target_note.startswith("The target is scripted")
    assert provenance.server_build == "0.32.0"


def test_against_the_whole_guard_as_the_baseline_it_is_a_regression() -> None:
    off, on = without_guard(), read_result(QUICK)
    failed = {c.name for c in judge(off, load_gate_policy(), on) if not c.passed}
    assert {"regression: garak.promptinject", "regression: pyrit.jailbreak"} <= failed
    unchanged = judge(on, load_gate_policy(), on)
    assert not [c.name for c in unchanged if c.kind == "regression" and not c.passed]


def test_the_profile_quick_fails_for_what_the_encoder_misses_and_for_nothing_else() -> None:
    on = read_result(QUICK)
    checks = judge(on, load_gate_policy())
    failed = {c.name for c in checks if not c.passed}
    assert failed == {
        "attack_success: garak.encoding",
        "attack_success: garak.latentinjection",
        "attack_success: garak.badchars + garak.dan + garak.doctor + garak.smuggling +"
        " garak.sysprompt_extraction",
    }
    without = families(without_guard())
    for name, rows in families(on).items():
        assert sum(row.wins for row in rows) <= sum(row.wins for row in without[name])
    assert not any(suite.blocked for suite in on.benign)


def test_the_suites_own_run_passes_and_shows_what_it_is_known_to_fail() -> None:
    on = read_result(CI_ON)
    checks = judge(on, load_gate_policy(CI_POLICY), on)
    assert [c.name for c in checks if not c.passed] == []
    assert {c.subject for c in checks if c.known} == {"garak.badchars", "garak.doctor"}
    # By the policy that ships, which knows of no failure, it fails.
    assert [c for c in judge(on, load_gate_policy()) if not c.passed]


def test_with_the_classifier_alone_off_the_gate_fails() -> None:
    """Recorded with PyRIT and the attacker model of `tests/live/test_live_redteam.py`."""
    off, on = read_result(CI_CLASSIFIER_OFF), read_result(CI_ON)
    failed = {c.name for c in judge(off, load_gate_policy(CI_POLICY), on) if not c.passed}
    assert any(name.startswith("attack_success: pyrit.direct") for name in failed)
    assert {"regression: pyrit.direct", "regression: pyrit.base64"} <= failed
    assert not any(name.startswith(("false_pos", "over_def", "unjudged")) for name in failed)
