"""Train the small stand-in target from scratch: a Llama that does what it is told."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vauban.errors import ConfigError
from vauban.standin import CHAT_TEMPLATE, SPECIAL_TOKENS
from vauban.training.batches import torch_device
from vauban.training.instruct_data import (
    END,
    MAX_TOKENS,
    VOCABULARY,
    Batch,
    Feed,
    PoolSpec,
    train_tokenizer,
)
from vauban.training.instruct_evaluate import Score, evaluate, table
from vauban.training.instruct_report import PROVENANCE, write_reports

Say = Callable[[str], None]
_REPORT_STEPS = 100


@dataclass(frozen=True, slots=True)
class InstructConfig:
    """Of one run. Exactly one of `minutes` (of the training loop) and `steps` ends it.

    `prompt_weight`: what a token of a prompt counts, an answer's counts 1. `short_first`: share
    of the run that shows short conversations only, in which copying is learned sooner.
    """

    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    batch_tokens: int = 32_768
    learning_rate: float = 1.5e-3
    warmup: float = 0.03
    weight_decay: float = 0.05
    prompt_weight: float = 0.03
    short_first: float = 0.3
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    inner: int = 768


@dataclass
class Progress:
    """`losses`: (step, mean loss on answers since the row before)."""

    steps: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    pools_drawn: int = 0
    pools_repeated: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)


def train_target(
    out: Path,
    config: InstructConfig,
    *,
    device: str = "auto",
    workers: int = 0,
    init: Path | None = None,
    evaluated: int = 48,
    say: Say,
) -> dict[str, Score]:
    """Train, write a Hugging Face checkpoint to `out`, and score it.

    :param device: where to train (`torch_device`).
    :param workers: processes that draw conversations ahead; 0: none.
    :param init: a trained target to go on from; give another seed than its own.
    :param evaluated: conversations of each kind to score it on.
    :raises ConfigError: the settings contradict each other.
    """
    if (config.minutes is None) == (config.steps is None):
        raise ConfigError("give either minutes or steps")
    device = str(torch_device(device))
    out.mkdir(parents=True, exist_ok=True)
    started = load_target(init) if init else None
    tokenizer = started[1] if started else _new_tokenizer(config.seed)
    tokenizer.save_pretrained(out)
    spec = PoolSpec(out / "tokenizer.json", config.seed, config.batch_tokens)
    feed = Feed(spec, workers, impatient=config.minutes is not None)
    try:
        torch.manual_seed(config.seed)
        model = started[0] if started else LlamaForCausalLM(_llama(config, tokenizer))
        say(f"{sum(p.numel() for p in model.parameters()):,} parameters, on {device}")
        progress = _fit(model.to(device), feed, config, device, say)
    finally:
        feed.close()
    _save(model, out)
    size = (out / "model.safetensors").stat().st_size
    say(
        f"saved {size / 1e6:.1f} MB; {progress.steps} steps, {progress.tokens:,} tokens,"
        f" {progress.seconds:.0f} s"
    )
    scores = evaluate(model, tokenizer, evaluated, config.seed + 1_000_003, device)
    write_reports(out, asdict(config), asdict(progress), scores, _provenance(init))
    say(table(scores))
    return scores


def _provenance(directory: Path | None) -> dict[str, Any] | None:
    path = directory / PROVENANCE if directory else None
    if path is None or not path.exists():
        return None
    return dict(json.loads(path.read_text(encoding="utf-8")))


def load_target(directory: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A trained target, in float32."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    model = LlamaForCausalLM.from_pretrained(directory, local_files_only=True).float()
    return model, tokenizer


def _new_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(seed),
        eos_token=END,
        pad_token=SPECIAL_TOKENS[0],
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _llama(config: InstructConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=config.hidden,
        intermediate_size=config.inner,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _fit(
    model: LlamaForCausalLM, feed: Feed, config: InstructConfig, device: str, say: Say
) -> Progress:
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in model.parameters() if p.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.ndim <= 1]},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=device != "cpu",
    )  # fmt: skip
    progress, sums = Progress(), torch.zeros(2, device=device)
    model.train()
    batches = _batches(feed)
    batch = next(batches)
    began = time.monotonic()
    while (done := _done(config, progress.steps, time.monotonic() - began)) < 1:
        feed.long = done >= config.short_first
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(done, config.warmup)
        with _precision(device):
            loss, answers = _loss(model, batch, config.prompt_weight, device)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums += answers
        progress.steps += 1
        progress.tokens += int((batch.kinds > 0).sum())
        progress.answer_tokens += int((batch.kinds == 2).sum())
        if progress.steps % _REPORT_STEPS == 0:
            total, count = sums.tolist()
            sums.zero_()
            progress.losses.append((progress.steps, round(total / max(1.0, count), 4)))
            rate = progress.tokens / (time.monotonic() - began)
            say(
                f"step {progress.steps}, {done:.0%}: answer loss {progress.losses[-1][1]:.4f},"
                f" {rate:,.0f} tokens/s, pools {feed.drawn} + {feed.repeated} again"
            )
        batch = next(batches)
    progress.seconds = round(time.monotonic() - began, 1)
    progress.pools_drawn, progress.pools_repeated = feed.drawn, feed.repeated
    return progress


def _batches(feed: Feed) -> Iterator[Batch]:
    for pool in feed.pools():
        yield from pool


def _done(config: InstructConfig, steps: int, seconds: float) -> float:
    if config.steps is not None:
        return steps / config.steps
    return seconds / (60 * (config.minutes or 1))


def _schedule(done: float, warmup: float) -> float:
    """A linear rise, then a cosine down to a fiftieth."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    part = min(1.0, (done - warmup) / (1 - warmup))
    return 0.02 + 0.98 * (1 + math.cos(math.pi * part)) / 2


def _precision(device: str) -> AbstractContextManager[Any]:
    if device == "cpu":
        return nullcontext()
    return torch.autocast(device_type="cuda", dtype=torch.bfloat16)


def _loss(
    model: LlamaForCausalLM, batch: Batch, prompt_weight: float, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted loss, and sum and number of the losses on answers."""
    ids = torch.from_numpy(batch.ids.astype("int64")).to(device, non_blocking=True)
    kinds = torch.from_numpy(batch.kinds).to(device, non_blocking=True)[:, 1:]
    # Rows end in padding, which no earlier token sees: no mask, and so the quick causal kernels.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden).float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    answer = (kinds == 2).flatten().float()
    weights = answer + (kinds == 1).flatten().float() * prompt_weight
    sums = torch.stack([(losses * answer).sum(), answer.sum()]).detach()
    return (losses * weights).sum() / weights.sum(), sums


def _save(model: LlamaForCausalLM, out: Path) -> None:
    """bfloat16 weights, and greedy decoding as the default."""
    weights = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
    saved = LlamaForCausalLM(model.config).to(torch.bfloat16)
    saved.load_state_dict(weights)
    saved.save_pretrained(out)
