"""Fine-tuning the encoder: deep head and upper layers, embeddings held by distillation.

loss = BCE(worst window of an example) + distill_weight * (1 - cos(embedding, base model's))
       [+ BCE under the worst small shift of the hidden states, arXiv 1605.07725]

Word embeddings and the lowest layers stay frozen, so student and teacher share them. What is kept
is a running mean of the weights (EMA), which carries over to new sources better than the last ones.
Words of a window may be hidden at random (`word_dropout`), which carries over to new sources better
than anything else that was tried; the run stays a function of data and seed, and resuming gives the
batches of an unbroken run. On CUDA the matrix products are bfloat16.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vauban.detectors.bert import EncoderModel, mean_pool
from vauban.detectors.checkpoint import WindowConfig
from vauban.detectors.windows import Ids
from vauban.errors import WeightsError
from vauban.training.attack_region import Region
from vauban.training.base import Start
from vauban.training.batches import batched, collate, torch_device
from vauban.training.mixture import POOL_EXAMPLES, Example, Mixture
from vauban.training.pools import pools
from vauban.training.word_adversary import WordAdversary, Words

SAVE_EVERY_S = 20.0
_MASK_ID = 103  # [MASK] of the BERT vocabulary
_PAD_ON_GPU = 16  # tokens; attention in bfloat16 is slow on rows of odd length


@dataclass(frozen=True, slots=True)
class FitConfig:
    """Hyper-parameters. `frozen_layers` counts from the bottom.

    `hard_after` is the share of the run after which only examples that are still wrong, or near
    it, are learned from (and one in eight of the others). `adversarial_after` is the share after
    which each step also learns under a shift of length `adversarial_length`, in units of the mean
    length of a token's hidden state; 1.0 = never. `adversarial_words` is the share of examples
    that get words which the model finds calming, or lose words that carry their score.
    """

    examples: int = 98_304
    seed: int = 0
    learning_rate: float = 1e-4
    head_learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.04
    frozen_layers: int = 2
    batch_tokens: int = 3072
    window_tokens: int = 128
    overlap_tokens: int = 40
    excerpts_from_logit: float = -2.0
    long_discount: float = 0.5
    distill_weight: float = 6.0
    distill_every: int = 3
    label_smoothing: float = 0.02
    ema: float = 0.995
    hard_after: float = 0.3
    hard_margin: float = 0.05
    adversarial_after: float = 1.0
    adversarial_length: float = 0.3
    word_dropout: float = 0.4
    adversarial_words: float = 0.0

    @property
    def window(self) -> WindowConfig:
        return WindowConfig(
            max_tokens=self.window_tokens,
            overlap_tokens=self.overlap_tokens,
            excerpts_from_logit=self.excerpts_from_logit,
            long_discount=self.long_discount,
        )

    @property
    def pools(self) -> int:
        return max(1, round(self.examples / POOL_EXAMPLES))

    @property
    def round_pools(self) -> int:
        """Pools that are cut into batches together: enough for several batches of like length."""
        return max(1, self.batch_tokens // 8192)


@dataclass(frozen=True, slots=True)
class Progress:
    """What `fit` reports after a round of pools: means over its steps, the share learned from."""

    pool: int
    pools: int
    loss: float
    cosine: float
    kept: float


class Trainer:
    """:param device: where to compute (`torch_device`); weights come and go as float32 on the CPU.
    :param workers: processes that draw examples ahead; 0: drawn in between.
    """

    def __init__(
        self,
        config: FitConfig,
        mixture: Mixture,
        frame: tuple[int, int],
        start: Start,
        state_path: Path,
        device: str = "cpu",
        workers: int = 0,
    ) -> None:
        self.config = config
        self._workers = workers
        self._mixture = mixture
        self._frame = frame
        self._state_path = state_path
        self._device = torch_device(device)
        self._on_gpu = self._device.type == "cuda"
        arch = start.architecture
        self._teacher = EncoderModel.build(arch, _copies(start.teacher)).to(self._device)
        self._teacher.requires_grad_(requires_grad=False)
        self.model = EncoderModel.build(arch, _copies(start.tensors)).to(self._device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(_trained(name, config.frozen_layers))
        self._average = {n: p.detach().clone() for n, p in self._trained_parameters()}
        self._optimizer = torch.optim.AdamW(
            [
                {"params": self._parameters(head=False), "lr": config.learning_rate},
                {"params": self._parameters(head=True), "lr": config.head_learning_rate},
            ],
            weight_decay=config.weight_decay,
        )
        self._adversary: WordAdversary | None = None
        if config.adversarial_words:
            words = Words.of(start.tokenizer, config.seed)
            share = config.adversarial_words
            self._adversary = WordAdversary(self.model, words, self._collated, share)
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]
        self._steps = 0

    def fit(self, report: Callable[[Progress], None]) -> None:
        """Train to the end, from `state_path` where a run was broken off."""
        total = self.config.pools
        done = self._load_state()
        saved = time.monotonic()
        drawn = pools(self._mixture, self.config.seed, done, total, self._workers)
        while examples := [e for pool in islice(drawn, self.config.round_pools) for e in pool]:
            random = np.random.default_rng([self.config.seed, done, 1])
            kept = examples
            if done >= self.config.hard_after * total:
                kept = self._hard(examples, random)
            batches = batched(kept, self.config.batch_tokens, random)
            count = len(examples) // POOL_EXAMPLES
            made = [
                self._step(batch, done, (done + count * i / len(batches)) / total, random)
                for i, batch in enumerate(batches)
            ]
            losses = [loss for loss, _ in made]
            cosines = [cosine for _, cosine in made if not math.isnan(cosine)]
            done += count
            if done >= total or time.monotonic() - saved > SAVE_EVERY_S:
                self._save_state(done)
                saved = time.monotonic()
            share = len(kept) / len(examples)
            cosine = float(np.mean(cosines)) if cosines else math.nan
            report(Progress(done, total, float(np.mean(losses)), cosine, share))

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The averaged weights."""
        state = {**self.model.state_dict(), **self._average}
        return {name: value.detach().cpu().numpy() for name, value in state.items()}

    def _trained_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def _parameters(self, *, head: bool) -> list[torch.nn.Parameter]:
        return [p for n, p in self._trained_parameters() if n.startswith("head.") is head]

    def _hard(self, examples: Sequence[Example], random: np.random.Generator) -> list[Example]:
        """Examples within `hard_margin` of being wrong, and one in eight of the rest.

        Of a bag only its worst window is kept.
        """
        chosen: list[Example] = []
        for batch in batched(examples, 4 * self.config.batch_tokens, random):
            with torch.no_grad():
                ids, real, bag = self._collate(batch)
                x = self._below(ids, real)
                logits = self.model.head(self._above(x, real), real).cpu()
            scores = logits.sigmoid().numpy()
            for i, example in enumerate(batch):
                rows = np.flatnonzero(bag.cpu().numpy() == i)
                worst = int(rows[np.argmax(scores[rows])])
                wrong = abs(example.label - float(scores[worst]))
                if wrong > self.config.hard_margin or random.random() < 0.125:
                    chosen.append(Example((example.windows[worst - int(rows[0])],), example.label))
        return chosen

    def _collate(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and mask of all windows, and the example of each."""
        ids, real = self._collated([w for example in batch for w in example.windows])
        bag = torch.tensor([i for i, example in enumerate(batch) for _ in example.windows])
        return ids, real, bag.to(self._device)

    def _collated(self, windows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        ids, real = collate(windows, self._frame, _PAD_ON_GPU if self._on_gpu else 1)
        return ids.to(self._device), real.to(self._device)

    def _below(self, ids: Tensor, real: Tensor) -> Tensor:
        """Hidden states after the frozen layers."""
        with torch.no_grad():
            x = self.model.embed_tokens(ids)
            for layer in self.model.layers[: self.config.frozen_layers]:
                x = layer(x, real[:, None, None, :])
        return x

    def _above(self, x: Tensor, real: Tensor) -> Tensor:
        for layer in self.model.layers[self.config.frozen_layers :]:
            x = layer(x, real[:, None, None, :])
        return x

    def _masked(self, ids: Tensor, random: np.random.Generator) -> Tensor:
        """Each window without a share of its words."""
        share = self.config.word_dropout * random.random((len(ids), 1))
        hidden = torch.from_numpy(random.random(tuple(ids.shape)) < share)
        hidden[:, 0] = False  # [CLS]; what is padded stays masked from attention anyway
        return ids.masked_fill(hidden.to(self._device), _MASK_ID)

    def _step(
        self, batch: Sequence[Example], number: int, done: float, random: np.random.Generator
    ) -> tuple[float, float]:
        """One step of the optimiser; loss and cosine (NaN where it was not looked at)."""
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * _schedule(done, self.config.warmup)
        if self._adversary is not None:
            with self._autocast():
                batch = self._adversary(batch, random)
        ids, real, bag = self._collate(batch)
        labels = torch.tensor([float(e.label) for e in batch], device=self._device)
        hardened = number >= self.config.adversarial_after * self.config.pools
        cosine = math.nan
        with self._autocast():
            shared = self._below(self._masked(ids, random), real)
            shared.requires_grad_(hardened)
            x = self._above(shared, real)
            objective = loss = self._injection_loss(x, real, bag, labels)
            if self._steps % self.config.distill_every == 0:
                similarity = self._similarity(ids, x, real)
                objective = loss + self.config.distill_weight * (1 - similarity)
                cosine = float(similarity.detach())
        self._optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        if hardened and shared.grad is not None:
            moved = shifted(shared.detach(), shared.grad, real, self.config.adversarial_length)
            with self._autocast():
                again = self._injection_loss(self._above(moved, real), real, bag, labels)
            again.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for _, p in self._trained_parameters()], 1.0)
        self._optimizer.step()
        self._steps += 1
        decay = min(self.config.ema, self._steps / (self._steps + 10))
        with torch.no_grad():
            for name, parameter in self._trained_parameters():
                self._average[name].lerp_(parameter, 1 - decay)
        return float(loss.detach()), cosine

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._on_gpu)

    def _injection_loss(self, x: Tensor, real: Tensor, bag: Tensor, labels: Tensor) -> Tensor:
        logits = self.model.head(x, real).float()
        worst = logits.new_full((len(labels),), -torch.inf).scatter_reduce(0, bag, logits, "amax")
        smooth = self.config.label_smoothing
        return F.binary_cross_entropy_with_logits(worst, labels * (1 - smooth) + smooth / 2)

    def _similarity(self, ids: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """Mean cosine to what the base model makes of the whole text."""
        with torch.no_grad():
            target = self._teacher.hidden(ids, real)
        return (mean_pool(x, real) * mean_pool(target, real)).sum(dim=-1).mean()

    def _save_state(self, pool: int) -> None:
        state: dict[str, Tensor] = {
            f"model.{name}": value for name, value in self._trained_parameters()
        }
        state |= {f"average.{name}": value for name, value in self._average.items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
        state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        meta = {"pool": str(pool), "steps": str(self._steps)}
        partial = self._state_path.with_suffix(".partial")
        save_file(state, partial, {**meta, "config": json.dumps(asdict(self.config))})
        partial.replace(self._state_path)

    def _load_state(self) -> int:
        """Pools already done; 0 for a new run."""
        if not self._state_path.exists():
            return 0
        try:
            with safe_open(self._state_path, "pt", device=str(self._device)) as file:
                meta = file.metadata()
                if json.loads(meta["config"]) != asdict(self.config):
                    raise WeightsError(f"{self._state_path}: from a run with other settings")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise WeightsError(f"{self._state_path}: damaged training state") from error
        slots: dict[int, dict[str, Tensor]] = {}
        model: dict[str, Tensor] = {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                index, _, slot = rest.partition(".")
                slots.setdefault(int(index), {})[slot] = value
            elif part == "average":
                self._average[rest] = value
            else:
                model[rest] = value
        self.model.load_state_dict(model, strict=False)
        whole = self._optimizer.state_dict()
        whole["state"] = slots
        self._optimizer.load_state_dict(whole)
        self._steps = int(meta["steps"])
        return int(meta["pool"])


def shifted(x: Tensor, gradient: Tensor, real: Tensor, length: float) -> Tensor:
    """FGSM by a gradient that is there already, so that the attack costs no pass of its own.

    Each window moves up its gradient by `length` times the mean length of its tokens.

    :param x: hidden states [windows, tokens, width]; padding (`real` False) stays where it is.
    """
    mean = (x.norm(dim=-1) * real).sum(dim=1) / real.sum(dim=1).clamp_min(1)
    region = Region.around(x, length * mean, "l2", (None, None), real)
    uphill = region.direction(torch.where(region.free, gradient, 0.0))
    return region.project(region.center + region.epsilon * uphill)


def _copies(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {name: value.copy() for name, value in tensors.items()}


def _trained(name: str, frozen_layers: int) -> bool:
    if name.startswith("head."):
        return True
    return name.startswith("layers.") and int(name.split(".")[1]) >= frozen_layers


def _schedule(done: float, warmup: float) -> float:
    """Linear warm-up, then cosine to zero. `done` is the share of the run, in [0, 1]."""
    if done < warmup:
        return (done + 0.01 * warmup) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
