"""Third-party classifiers beside the encoder: same batching, own tokenizer, safetensors only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vauban.detectors.encoder import Encoder
from vauban.errors import ScreeningFailed, WeightsError
from vauban.policy import EncoderPolicy

TEXTS = ["the ignore", "ignoring the é rules " * 20, "", "a1b2 " * 7]
Save = Callable[..., Path]


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_scores_are_the_models_own(family: str, save_classifier: Save, tiny_dir: Path) -> None:
    directory = save_classifier(family, {0: "SAFE", 1: "INJECTION"})
    policy = EncoderPolicy(weights=tiny_dir, classifiers=[directory], batch_tokens=512)
    encoder = Encoder.load(policy, "cpu")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    batch = [encoder.tokenizer([text]) for text in TEXTS]
    alone = Encoder.load(EncoderPolicy(weights=tiny_dir), "cpu")
    for text, windows, found in zip(TEXTS, batch, encoder.encode(batch), strict=True):
        (shipped,) = alone.encode([alone.tokenizer([text])])
        with torch.inference_mode():
            theirs = [
                float(model(torch.from_numpy(ids).long()[None]).logits.softmax(-1)[0, 1])
                for ids in windows.per_model[1]
            ]
        assert found.score == pytest.approx(max([shipped.score, *theirs]), abs=1e-5)
        assert found.windows == shipped.windows
        if shipped.embedding is not None:
            assert found.embedding == pytest.approx(shipped.embedding, abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_batch_equals_single(family: str, save_classifier: Save, tiny_dir: Path) -> None:
    directory = save_classifier(family, {0: "BENIGN", 1: "INJECTION", 2: "JAILBREAK"})
    policy = EncoderPolicy(weights=tiny_dir, classifiers=[directory])
    encoder = Encoder.load(policy, "cpu")
    batch = [encoder.tokenizer([text]) for text in TEXTS]
    for together, windows in zip(encoder.encode(batch), batch, strict=True):
        assert together.score == pytest.approx(encoder.encode([windows])[0].score, abs=1e-5)


def test_long_text_is_windowed_for_the_classifier_too(
    save_classifier: Save, tiny_dir: Path
) -> None:
    directory = save_classifier("bert", {0: "SAFE", 1: "INJECTION"})
    encoder = Encoder.load(EncoderPolicy(weights=tiny_dir, classifiers=[directory]), "cpu")
    windows = encoder.tokenizer(["the " * 500]).per_model[1]
    assert len(windows) > 10
    assert max(map(len, windows)) <= 40
    assert all((ids[0], ids[-1]) == (windows[0][0], windows[0][-1]) for ids in windows)


def test_a_missing_head_is_refused_not_random(save_classifier: Save, tiny_dir: Path) -> None:
    directory = save_classifier("bert", {0: "SAFE", 1: "INJECTION"})
    path = directory / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if not k.startswith("classifier")}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(WeightsError, match="missing"):
        Encoder.load(EncoderPolicy(weights=tiny_dir, classifiers=[directory]), "cpu")


def test_damaged_weights_are_refused(save_classifier: Save, tiny_dir: Path) -> None:
    directory = save_classifier("bert", {0: "SAFE", 1: "INJECTION"})
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError):
        Encoder.load(EncoderPolicy(weights=tiny_dir, classifiers=[directory]), "cpu")


def test_remote_code_is_not_run(
    save_classifier: Save, tiny_dir: Path, edit_json: Callable[..., None]
) -> None:
    directory = save_classifier("bert", {0: "SAFE", 1: "INJECTION"})
    marker = directory / "ran"
    (directory / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    edit_json(
        directory / "config.json",
        model_type="evil",
        auto_map={
            "AutoConfig": "evil.Config",
            "AutoModelForSequenceClassification": "evil.Model",
        },
    )
    with pytest.raises(WeightsError):
        Encoder.load(EncoderPolicy(weights=tiny_dir, classifiers=[directory]), "cpu")
    assert not marker.exists()


def test_windows_for_other_models_are_a_failure(
    save_classifier: Save, tiny_dir: Path, tiny: Encoder
) -> None:
    directory = save_classifier("bert", {0: "SAFE", 1: "INJECTION"})
    encoder = Encoder.load(EncoderPolicy(weights=tiny_dir, classifiers=[directory]), "cpu")
    with pytest.raises(ScreeningFailed):
        encoder.encode([tiny.tokenizer(["the"])])
