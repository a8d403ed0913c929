"""Grammars fill every slot, are reproducible, and say what is wrong with a bad file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vauban.errors import ConfigError
from vauban.training.grammar import Fill, load_grammars

GIVEN: dict[str, Fill] = {
    name: lambda random, name=name: f"<{name} {random.integers(9)}>"
    for name in ("document", "code", "tool_output", "request", "harmless", "gibberish")
}


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(text, encoding="utf-8")


def test_the_shipped_grammars_fill() -> None:
    grammars = load_grammars(GIVEN)
    assert {g.label for g in grammars} == {0, 1}
    for grammar in grammars:
        random = np.random.default_rng(0)
        texts = [grammar.text(random) for _ in range(60)]
        assert all(text.strip() for text in texts), grammar.name
        assert len(set(texts)) > 40, grammar.name
        again = np.random.default_rng(0)
        assert texts == [grammar.text(again) for _ in range(60)], grammar.name


def test_slots_nest_capitals_and_braces(tmp_path: Path) -> None:
    write(tmp_path, "common.yaml", "rules: {who: [bob]}\n")
    write(
        tmp_path,
        "a.yaml",
        "label: 1\nkind: k\nstart: ['{{{one^}}} {document}']\nrules: {one: ['hi {who}']}\n",
    )
    (grammar,) = load_grammars({"document": lambda _: "DOC"}, tmp_path)
    assert grammar.text(np.random.default_rng(0)) == "{Hi bob} DOC"


def test_a_file_may_use_the_start_of_another(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "label: 0\nkind: k\nstart: ['from a']\n")
    write(tmp_path, "b.yaml", "label: 1\nkind: k\nstart: ['b: {any_a}']\n")
    texts = [g.text(np.random.default_rng(0)) for g in load_grammars({}, tmp_path)]
    assert texts == ["from a", "b: from a"]


def test_a_twin_has_the_form_and_none_of_the_orders(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.yaml",
        """
label: 1
kind: indirect_injection
twin: {kind: benign_document, replace: [pay], avoid: [goal]}
start: ["<p>{pay}</p>", "note: {goal}", "<b>{deep}</b>", "{only}"]
rules:
  pay: ["do {goal}"]
  goal: ["harm"]
  deep: ["{goal} now", "{pay}"]
  only: ["{goal}"]
""",
    )
    attack, twin = load_grammars({"harmless": lambda _: "fine"}, tmp_path)
    assert (attack.label, twin.label, twin.kind) == (1, 0, "benign_document")
    random = np.random.default_rng(0)
    assert {twin.text(random) for _ in range(40)} == {"<p>fine</p>", "<b>fine</b>"}
    assert all("harm" in attack.text(random) for _ in range(40))


def test_a_twin_may_bring_rules_and_a_weight_of_its_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.yaml",
        """
label: 1
kind: jailbreak
weight: 2
twin: {kind: benign_roleplay, weight: 3, rules: {goal: ["bake"]}}
start: ["game: {goal}"]
rules: {goal: ["harm"]}
""",
    )
    attack, twin = load_grammars({}, tmp_path)
    assert (attack.weight, twin.weight, twin.label) == (2, 3, 0)
    random = np.random.default_rng(0)
    assert (attack.text(random), twin.text(random)) == ("game: harm", "game: bake")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("label: 2\nkind: k\nstart: [a]\n", "not a grammar"),
        ("label: 1\nkind: k\nstart: []\n", "not a grammar"),
        ("label: 1\nkind: k\nstart: [a]\nextra: 1\n", "not a grammar"),
        ("start: [", "not a grammar"),
        ("label: 1\nkind: k\nstart: ['{nobody}']\n", "nothing fills nobody"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, fault: str) -> None:
    write(tmp_path, "bad.yaml", text)
    with pytest.raises(ConfigError, match=fault) as caught:
        load_grammars({}, tmp_path)
    assert "bad.yaml" in str(caught.value)


def test_a_rule_that_fills_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "label: 1\nkind: k\nstart: ['{x}']\nrules: {x: ['{x}']}\n")
    (grammar,) = load_grammars({}, tmp_path)
    with pytest.raises(ConfigError, match="fills itself"):
        grammar.text(np.random.default_rng(0))
