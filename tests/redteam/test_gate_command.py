"""`vauban gate`: exit codes, the table, and files that code hosts read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_results import attack
from typer.testing import CliRunner

from vauban.cli import app, main
from vauban.redteam.gate import RULES, Check
from vauban.redteam.gate_reports import junit, sarif
from vauban.redteam.result import Result, write_result

Make = Callable[..., Result]


@pytest.fixture
def files(make_result: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good.json and bad.json, current."""
    monkeypatch.chdir(tmp_path)
    write_result(make_result(), tmp_path / "good.json")
    write_result(make_result(attacks=[attack(wins=50, blocked=50)]), tmp_path / "bad.json")
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["gate", *arguments])


def test_exit_codes(files: Path) -> None:
    good, bad = run("good.json"), run("bad.json")
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "PASS" in good.output
    assert "FAIL: 1 of" in bad.output
    assert "50 of 100" in bad.output


@pytest.mark.parametrize(
    "arguments",
    [["none.json"], ["good.json", "--policy", "none.yaml"], ["good.json", "--baseline", "x.json"]],
)
def test_what_cannot_be_judged_is_exit_2(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vauban", "gate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


def test_a_baseline_that_differs_is_named(files: Path, make_result: Make) -> None:
    other = make_result()
    provenance = other.provenance.model_copy(update={"profile": "full"})
    write_result(other.model_copy(update={"provenance": provenance}), files / "old.json")
    done = run("good.json", "--baseline", "old.json")
    assert done.exit_code == 0
    assert "the baseline has profile full, this result quick" in done.output


def test_junit_tells_what_failed(files: Path) -> None:
    run("bad.json", "--junit", "reports/junit.xml", "--sarif", "reports/gate.sarif")
    root = ElementTree.parse(files / "reports/junit.xml").getroot()  # noqa: S314 - our own
    assert root.tag == "testsuites"
    (suite,) = root
    cases = list(suite)
    assert suite.tag == "testsuite"
    assert {c.tag for c in cases} == {"testcase"}
    assert all(c.get("name") and c.get("classname") for c in cases)
    failures = [c for c in cases if c.find("failure") is not None]
    assert int(suite.get("tests", "")) == len(cases)
    assert int(suite.get("failures", "")) == len(failures) == 1
    assert "50 of 100" in failures[0].find("failure").get("message")  # type: ignore[union-attr]


def test_sarif_has_what_the_format_requires(files: Path) -> None:
    run("bad.json", "--sarif", "gate.sarif")
    document = json.loads((files / "gate.sarif").read_text())
    assert document["version"] == "2.1.0"
    (one,) = document["runs"]
    driver = one["tool"]["driver"]
    assert driver["name"]
    assert [rule["id"] for rule in driver["rules"]] == [f"gate/{kind}" for kind in RULES]
    (found,) = one["results"]
    assert driver["rules"][found["ruleIndex"]]["id"] == found["ruleId"] == "gate/attack_success"
    assert found["level"] == "error"
    assert "50 of 100" in found["message"]["text"]
    place = found["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "bad.json"
    assert place["region"]["startLine"] >= 1


def test_a_known_failure_is_a_warning(files: Path) -> None:
    policy = files / "gate.yaml"
    policy.write_text("attack_success: {known_failures: {garak.dan: the model refuses nothing}}")
    reports = ("--junit", "junit.xml", "--sarif", "gate.sarif")
    done = run("bad.json", "--policy", str(policy), "--baseline", "bad.json", *reports)
    assert done.exit_code == 0, done.output
    assert "1 known to fail" in done.output
    (found,) = json.loads((files / "gate.sarif").read_text())["runs"][0]["results"]
    assert (found["ruleId"], found["level"]) == ("gate/known_failure", "warning")
    root = ElementTree.parse(files / "junit.xml").getroot()  # noqa: S314 - our own
    assert "the model refuses nothing" in "".join(root.itertext())
    assert root.get("failures") == "0"


def test_nothing_failed_is_no_alert(files: Path) -> None:
    run("good.json", "--sarif", "gate.sarif")
    assert json.loads((files / "gate.sarif").read_text())["runs"][0]["results"] == []


def test_hostile_names_stay_text() -> None:
    check = Check("run", "a<b>&\x00\ud800[red]\u202e", passed=False, found='"]]>', wanted="x")
    root = ElementTree.fromstring(junit([check]))  # noqa: S314 - our own
    assert root[0][0].get("name", "").startswith("a<b>&")
    json.loads(sarif([check], Path("/somewhere/else/r.json")))
