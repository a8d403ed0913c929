"""The README says what the code does: its policy table is generated, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vauban.access.scopes import FEATURES, ROUTE_GROUPS
from vauban.cli import app
from vauban.commands.policy import markdown_table
from vauban.detectors import checkpoint
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


def test_the_classifiers_numbers_are_those_of_its_model_card() -> None:
    """Cells of a row: file, attacks, benign, AUC, recall at 0.1%, 0.5%, 1% and 2%."""
    card = (checkpoint.shipped() / "MODEL_CARD.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| dev(?:_ood)? \| .*$", card, re.MULTILINE)
    assert len(rows) == 2
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert f"| {cells[3]} | {cells[6]} | {cells[4]} |" in README
    block_at = checkpoint.read_config(checkpoint.shipped()).block_at
    assert f"`block_at` ({block_at:.2f})" in README


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
