"""Fine-tuning the encoder: injection head and upper layers, embeddings held by distillation.

loss = BCE(worst window of an example) + distill_weight * (1 - cos(embedding, base model's))

Word embeddings and the lowest layers stay frozen, so student and teacher share them. No dropout:
the run is a function of data and seed, and resuming gives the batches of an unbroken run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vauban.detectors.bert import EncoderModel, mean_pool
from vauban.errors import WeightsError
from vauban.training.base import Start
from vauban.training.plan import EpochPlan, Example


@dataclass(frozen=True, slots=True)
class FitConfig:
    """Hyper-parameters. `frozen_layers` counts from the bottom."""

    epochs: float = 1.0
    seed: int = 0
    learning_rate: float = 8e-5
    head_learning_rate: float = 6e-4
    weight_decay: float = 0.01
    warmup: float = 0.06
    frozen_layers: int = 2
    batch_tokens: int = 2048
    window_tokens: int = 160
    distill_weight: float = 3.0
    distill_every: int = 3
    label_smoothing: float = 0.02
    save_every_steps: int = 100


@dataclass(frozen=True, slots=True)
class Progress:
    """What `fit` reports after a step."""

    step: int
    steps: int
    loss: float
    cosine: float


class Trainer:
    def __init__(
        self,
        config: FitConfig,
        plan: EpochPlan,
        start: Start,
        state_path: Path,
    ) -> None:
        self.config = config
        self._plan = plan
        self._state_path = state_path
        arch = start.architecture
        self._teacher = EncoderModel.build(arch, start.teacher).requires_grad_(requires_grad=False)
        copies = {name: value.copy() for name, value in start.tensors.items()}
        self.model = EncoderModel.build(arch, copies)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(_trained(name, config.frozen_layers))
        self._optimizer = torch.optim.AdamW(
            [
                {"params": self._parameters(head=False), "lr": config.learning_rate},
                {"params": self._parameters(head=True), "lr": config.head_learning_rate},
            ],
            weight_decay=config.weight_decay,
        )
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]

    def fit(self, report: Callable[[Progress], None]) -> None:
        """Train to the end, from `state_path` where a run was broken off."""
        per_epoch = [
            len(self._plan.batches(self.config.seed, epoch))
            for epoch in range(math.ceil(self.config.epochs))
        ]
        steps = round(sum(per_epoch) * self.config.epochs / len(per_epoch))
        start = self._load_state()
        step = 0
        for epoch, count in enumerate(per_epoch):
            if step + count <= start:
                step += count
                continue
            for batch in self._plan.batches(self.config.seed, epoch):
                if step >= steps:
                    break
                if step >= start:
                    report(self._step(batch, step, steps))
                    if (step + 1) % self.config.save_every_steps == 0 or step + 1 == steps:
                        self._save_state(step + 1)
                step += 1

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        return {name: value.detach().numpy() for name, value in self.model.state_dict().items()}

    def _parameters(self, *, head: bool) -> list[torch.nn.Parameter]:
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and name.startswith("head.") is head
        ]

    def _step(self, batch: Sequence[Example], step: int, steps: int) -> Progress:
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * _schedule(step, steps, self.config.warmup)
        ids, real, bag = collate(batch, self._plan.frame)
        mask = real[:, None, None, :]
        with torch.no_grad():
            shared = self.model.embed_tokens(ids)
            for layer in self.model.layers[: self.config.frozen_layers]:
                shared = layer(shared, mask)
        x = shared
        for layer in self.model.layers[self.config.frozen_layers :]:
            x = layer(x, mask)
        logits = self.model.head(x, real)
        worst = logits.new_full((len(batch),), -torch.inf).scatter_reduce(0, bag, logits, "amax")
        labels = torch.tensor([example.label for example in batch], dtype=torch.float32)
        smooth = self.config.label_smoothing
        loss = F.binary_cross_entropy_with_logits(worst, labels * (1 - smooth) + smooth / 2)
        cosine = math.nan
        if step % self.config.distill_every == 0:
            similarity = self._similarity(shared, mask, x, real)
            loss = loss + self.config.distill_weight * (1 - similarity)
            cosine = float(similarity.detach())
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self._optimizer.step()
        return Progress(step + 1, steps, float(loss.detach()), cosine)

    def _similarity(self, shared: Tensor, mask: Tensor, x: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            target = shared  # the frozen layers are the teacher's own, up to int8 rounding
            for layer in self._teacher.layers[self.config.frozen_layers :]:
                target = layer(target, mask)
        return (mean_pool(x, real) * mean_pool(target, real)).sum(dim=-1).mean()

    def _save_state(self, step: int) -> None:
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
        partial = self._state_path.with_suffix(".partial")
        save_file(state, partial, {"step": str(step), "config": json.dumps(asdict(self.config))})
        partial.replace(self._state_path)

    def _load_state(self) -> int:
        """Steps already made; 0 for a new run."""
        if not self._state_path.exists():
            return 0
        try:
            with safe_open(self._state_path, "pt") as file:
                meta = file.metadata()
                if json.loads(meta["config"]) != asdict(self.config):
                    raise WeightsError(f"{self._state_path}: from a run with other settings")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise WeightsError(f"{self._state_path}: damaged training state") from error
        slots: dict[int, dict[str, Tensor]] = {}
        for name in [n for n in state if n.startswith("optimizer.")]:
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = state.pop(name)
        self.model.load_state_dict({n.removeprefix("model."): v for n, v in state.items()})
        whole = self._optimizer.state_dict()
        whole["state"] = slots
        self._optimizer.load_state_dict(whole)
        return int(meta["step"])


def collate(batch: Sequence[Example], frame: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad; put `frame`, the ids of [CLS] and [SEP], around each window.

    :return: ids and mask [windows, tokens], and the example of each window [windows].
    """
    windows = [(i, window) for i, example in enumerate(batch) for window in example.windows]
    longest = max(len(window) for _, window in windows) + 2
    ids = torch.zeros(len(windows), longest, dtype=torch.int64)
    real = torch.zeros(len(windows), longest, dtype=torch.bool)
    for row, (_, window) in enumerate(windows):
        ids[row, 0] = frame[0]
        ids[row, 1 : len(window) + 1] = torch.from_numpy(window)
        ids[row, len(window) + 1] = frame[1]
        real[row, : len(window) + 2] = True
    return ids, real, torch.tensor([i for i, _ in windows])


def _trained(name: str, frozen_layers: int) -> bool:
    if name.startswith("head."):
        return True
    return name.startswith("layers.") and int(name.split(".")[1]) >= frozen_layers


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then cosine to zero."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
