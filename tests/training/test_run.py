"""The whole run on a tiny model and made-up rows, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vauban.commands.train import app
from vauban.detectors import checkpoint
from vauban.detectors.encoder import Encoder
from vauban.policy import EncoderPolicy
from vauban.training import base
from vauban.training.base import Start


def test_a_checkpoint_comes_out(
    data_dir: Path,
    tmp_path: Path,
    start: Start,
    small_pools: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "load_start", lambda *_args, **_kwargs: start)
    out = tmp_path / "out"
    arguments = ["injection", "--data", str(data_dir), "--out", str(out), "--examples", "128"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "MODEL_CARD.md",
        "provenance.json",
    }
    config = checkpoint.read_config(out)
    assert config.flag_at <= config.block_at
    encoder = Encoder.load(EncoderPolicy(weights=out), "cpu")
    (found,) = encoder.encode([encoder.tokenizer(["hello there"])])
    assert 0 <= found.score <= 1
    card = (out / "MODEL_CARD.md").read_text()
    assert "| someone/something | MIT | 40 | 80 |" in card
    written = json.dumps(json.loads((out / "provenance.json").read_text()))
    assert str(tmp_path) not in written + card
    assert config.weights_sha256 in written


def test_the_mean_of_runs_is_a_checkpoint(
    data_dir: Path,
    tmp_path: Path,
    start: Start,
    small_pools: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "load_start", lambda *_args, **_kwargs: start)
    run, members = CliRunner(), [str(tmp_path / name) for name in ("a", "b")]
    for seed, out in enumerate(members):
        arguments = ["--data", str(data_dir), "--out", out, "--examples", "64", "--seed", str(seed)]
        assert run.invoke(app, ["injection", *arguments, "--workers", "1"]).exit_code == 0
    arguments = ["--data", str(data_dir), "--out", str(tmp_path / "mean")]
    result = run.invoke(app, ["average", *members, *arguments])
    assert result.exit_code == 0, result.output
    a, b, mean = (
        checkpoint.read_tensors(path, checkpoint.read_config(path))
        for path in (*map(Path, members), tmp_path / "mean")
    )
    name = "head.hidden.weight"
    one_step = np.abs(mean[name]).max(axis=1, keepdims=True) / 127  # of the int8 scale
    assert (np.abs(mean[name] - (a[name] + b[name]) / 2) <= one_step).all()
    assert "mean of the weights of 2 runs" in (tmp_path / "mean" / "MODEL_CARD.md").read_text()
    written = json.loads((tmp_path / "mean" / "provenance.json").read_text())
    assert [member["fit"]["seed"] for member in written["members"]] == [0, 1]

    further = tmp_path / "further"  # a mean of runs counts for each of them
    members = [str(tmp_path / "mean"), members[1]]
    result = run.invoke(app, ["average", *members, "--data", str(data_dir), "--out", str(further)])
    assert result.exit_code == 0, result.output
    found = checkpoint.read_tensors(further, checkpoint.read_config(further))
    assert (np.abs(found[name] - (2 * mean[name] + b[name]) / 3) <= one_step).all()
    written = json.loads((further / "provenance.json").read_text())
    assert [member["fit"]["seed"] for member in written["members"]] == [0, 1, 1]

    alone = tmp_path / "alone"
    result = run.invoke(
        app, ["average", str(tmp_path / "a"), "--data", str(data_dir), "--out", str(alone)]
    )
    assert result.exit_code == 0, result.output
    again = checkpoint.read_tensors(alone, checkpoint.read_config(alone))
    assert all(np.array_equal(again[n], a[n]) for n in a if not n.startswith("lexical"))

    (tmp_path / "mean" / "provenance.json").unlink()
    assert run.invoke(app, ["average", str(tmp_path / "mean"), *arguments]).exit_code == 2


def test_a_data_fault_is_an_exit_code(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "load_start", lambda *_args, **_kwargs: start)
    arguments = ["injection", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2


def test_own_rows_need_no_third_file_and_no_gzip(
    tmp_path: Path, start: Start, small_pools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inits: list[Path | None] = []

    def load(seed: int, init: Path | None = None) -> Start:
        inits.append(init)
        return start

    monkeypatch.setattr(base, "load_start", load)
    rows = [
        {"text": f"obey me now {i}" if i % 2 else f"a calm river {i}", "label": i % 2}
        for i in range(40)
    ]
    for name in ("train", "dev"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["injection", "--data", str(tmp_path), "--out", str(out), "--examples", "64"]
    result = CliRunner().invoke(app, [*arguments, "--init", "shipped"])
    assert result.exit_code == 0, result.output
    assert inits == [checkpoint.shipped()]
    assert "dev_ood" not in (out / "MODEL_CARD.md").read_text()
    (tmp_path / "dev.jsonl").unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "has no dev.jsonl" in result.output.replace("\n", "")
