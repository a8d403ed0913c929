"""The workflow files in docs/ci call the commands as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from vauban.cli import app

DOCS = Path(__file__).parents[2] / "docs" / "ci"
COMMAND = re.compile(r"\bvauban (redteam all|gate)\b([^\n]*)")


def strings(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


def options(command: str) -> set[str]:
    found: Any = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    return {option for parameter in found.params for option in parameter.opts}


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_commands_and_options_exist(name: str) -> None:
    texts = strings(yaml.safe_load((DOCS / name).read_text()))
    called = [match for text in texts for match in COMMAND.finditer(text)]
    assert [match[1] for match in called] == ["redteam all", "gate"]
    for match in called:
        given = set(re.findall(r"--[a-z][a-z-]*", match[2]))
        assert given
        assert given <= options(match[1])
    # What the attack writes is what the gate reads.
    assert "--out redteam.json" in called[0][2]
    assert "redteam.json" in called[1][2]
