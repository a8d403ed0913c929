"""The README says what the code does: its policy table is generated, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vauban.access.scopes import FEATURES, ROUTE_GROUPS
from vauban.cli import app
from vauban.commands.policy import markdown_table
from vauban.policy_sources import explain, load_policy
from vauban.telemetry import Metrics
from vauban.types import Reason

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
START, END = "<!-- policy table: vauban policy --markdown -->", "<!-- end of policy table -->"


def test_the_policy_table_is_the_generated_one() -> None:
    table = README.partition(START)[2].partition(END)[0].strip()
    assert table == markdown_table(explain(load_policy(environ={})))


def test_every_vauban_command_in_it_exists() -> None:
    commands = {m.split()[0] for m in re.findall(r"\bvauban ((?:[a-z]+)(?: [a-z]+)?)", README)}
    known = {
        "serve", "keys", "policy", "screen", "train", "evaluate", "demo", "triton", "users",
        "extraction", "redteam", "gate", "approvals", "console", "sandbox",
    }  # fmt: skip
    assert known <= commands
    for command in known:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained(reason: Reason) -> None:
    assert f"`{reason.value}`" in README


def test_every_scope_is_named() -> None:
    missing = [name for name in (*ROUTE_GROUPS, *FEATURES) if f"`{name}`" not in README]
    assert missing in ([], ["audio"])  # no route of that group is open yet


def test_every_metric_is_named(tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    Metrics(registry)
    names = {metric.name for metric in registry.collect()}
    assert names
    assert not [name for name in names if name not in README]
