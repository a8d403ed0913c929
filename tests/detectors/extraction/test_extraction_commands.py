"""`vauban extraction`, and a reference that is learned while thieves are among the callers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from extraction_world import World
from typer.testing import CliRunner

from vauban.cli import app
from vauban.detectors.extraction.calibrate import calibrate
from vauban.detectors.extraction.detector import ExtractionDetector
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.reference import Reference
from vauban.detectors.extraction.replay import Row, replay
from vauban.errors import MalformedRequest
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Caller, Level

POLICY = ExtractionPolicy(device="cpu")


def written(path: Path, streams: Mapping[str, Floats]) -> Path:
    rows = [
        json.dumps({"user": name, "time": turn, "embedding": row.round(5).tolist()})
        for name, stream in streams.items()
        for turn, row in enumerate(stream)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_replay_tells_who_and_when(tmp_path: Path, world: World) -> None:
    source = written(tmp_path / "q.jsonl", {"t": world.script(200), "p": world.person(120)})
    table, plot = tmp_path / "steps.csv", tmp_path / "who.png"
    done = CliRunner().invoke(
        app,
        ["extraction", "replay", "--jsonl", str(source), "--json", "--csv", str(table),
         "--plot", str(plot)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    thief, person = document["users"]
    assert (thief["user"], thief["queries"]) == ("t", 200)
    assert thief["action"] in ("slow", "degrade", "ban")
    assert thief["first_action_at"] <= 100
    assert thief["reached_at"]["flag"] == thief["first_action_at"]
    assert (person["action"], person["first_action_at"]) == ("allow", None)
    assert thief["score"] > 0.34 > person["score"]
    assert table.read_text().startswith("user,query,time,score,level\nt,32,31,")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", 'line 1: no "user"'),
        ('{"user": "a"}', 'line 1: no "text"'),
        ('{"user": "a", "embedding": "x"}', "must be a list of numbers"),
        ('{"user": "a", "embedding": [0, 0]}', "finite numbers, not all 0"),
        ('{"user": "a", "embedding": [1, NaN]}', "finite numbers, not all 0"),
        (f'{{"user": "a", "embedding": [1, 1{"0" * 400}]}}', "finite numbers, not all 0"),
        ('{"user": "a", "embedding": [1, 2]}', "2 numbers; the reference is for 384"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, line: str, told: str) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text(line, encoding="utf-8")
    done = CliRunner().invoke(app, ["extraction", "replay", "--jsonl", str(source)])
    assert isinstance(done.exception, MalformedRequest)
    assert told in str(done.exception)


def test_long_embeddings_are_scaled(tmp_path: Path, world: World) -> None:
    """Also where their squares are no numbers of the kind they are kept in."""
    found, script = [], world.script(96).tolist()
    for scale in (1.0, 1e30, 1e200):
        source = tmp_path / f"{scale}.jsonl"
        rows = [{"user": "t", "embedding": [x * scale for x in row]} for row in script]
        source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        done = CliRunner().invoke(app, ["extraction", "replay", "--jsonl", str(source), "--json"])
        found.append(json.loads(done.stdout)["users"][0]["score"])
    assert found[0] > 0.34
    assert found[1:] == pytest.approx([found[0]] * 2, abs=0.01)


def rows_of(streams: Mapping[str, Floats]) -> list[Row]:
    return [Row(Caller(name), row) for name, stream in streams.items() for row in stream]


@pytest.mark.parametrize("keep_suspects", [False, True])
def test_a_fifth_of_thieves_spoils_no_reference(world: World, keep_suspects: bool) -> None:
    people = {f"p{n}": world.person(256) for n in range(40)}
    thieves = {f"t{n}": world.script(256) for n in range(10)}
    found = calibrate(
        rows_of(people | thieves), Reference.load(), POLICY, keep_suspects=keep_suspects
    )
    assert found.suspects == (0 if keep_suspects else 10)
    assert all(np.isfinite(moved) for moved in found.drift.values())
    later = {f"t{n}": world.script(300) for n in range(10)} | {"p": world.person(300)}
    reports = replay(rows_of(later), ExtractionDetector(POLICY, found.reference))
    assert [report.level >= Level.FLAGGED for report in reports] == [True] * 10 + [False]


def test_too_few_callers_teach_nothing(world: World) -> None:
    with pytest.raises(MalformedRequest, match="at least 20"):
        calibrate(rows_of({"p": world.person(100)}), Reference.load(), POLICY)


def test_a_reference_survives_being_saved(tmp_path: Path) -> None:
    reference = Reference.load()
    reference.save(tmp_path)
    again = Reference.load(tmp_path)
    assert again.about == reference.about
    assert (again.ever == reference.ever).all()
    (tmp_path / "reference.safetensors").write_bytes(b"damaged")
    with pytest.raises(Exception, match="not a reference of this version"):
        Reference.load(tmp_path)
