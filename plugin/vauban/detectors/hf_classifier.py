"""Third-party sequence classifiers (Prompt Guard 2, ProtectAI DeBERTa...) from a local directory.

Only what `transformers` itself implements, only safetensors, nothing fetched, no remote code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from vauban.detectors.classifier_config import ClassifierConfig, read_classifier_config
from vauban.errors import WeightsError


class HfClassifier:
    """Runs in float32: such checkpoints are not made for half precision."""

    def __init__(self, model: torch.nn.Module, config: ClassifierConfig) -> None:
        self._model = model
        self.pad_id = config.pad_id
        self.vocab_size = config.vocab_size
        self.max_tokens = config.max_tokens
        self._attack_labels = list(config.attack_labels)
        self._labels = config.labels

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> HfClassifier:
        """:raises WeightsError: also when weights are missing (they would be random)."""
        config = read_classifier_config(directory)
        try:
            with torch.device("cpu"):
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    str(directory),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise WeightsError(f"{directory}: can't be loaded ({error})") from error
        lacking = [*report["missing_keys"], *report["mismatched_keys"]]
        if lacking:
            raise WeightsError(f"{directory}: {len(lacking)} weights missing, first {lacking[0]}")
        return cls(model.to(device).eval(), config)

    def __call__(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, None]:
        """[windows, tokens] int64 and its mask -> attack probability [windows]."""
        mask = torch.ones_like(ids) if real is None else real.long()
        logits = self._model(input_ids=ids, attention_mask=mask).logits
        probabilities = logits.float().softmax(dim=-1)
        return probabilities[:, self._attack_labels].sum(dim=-1).clamp(max=1.0), None
