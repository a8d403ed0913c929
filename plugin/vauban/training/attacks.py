"""Attacks on continuous input, and the training step that hardens a model against them.

FGSM (Goodfellow et al. 2015, arXiv 1412.6572, section 4) and PGD (Madry et al. 2018, arXiv
1706.06083, section 2.1) for any torch module and any floating-point input: pixels, features, or
hidden states such as token embeddings (Miyato et al. 2017, arXiv 1605.07725).

Covers: after an attack the caller's tensors, the module's parameters with their `.grad`, its
buffers (batch-norm statistics) and its train/eval flags are what they were; `no_grad` and
`inference_mode` around the call; float16 and bfloat16, as input or by autocast.

Does not cover: hooks of the module, which see the attack's passes; recurrent layers on CUDA, whose
backward pass needs train mode (`eval_mode=False`); `DistributedDataParallel` and FSDP, which count
backward passes (attack the module inside). Robust against these attacks is not robust.

>>> model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
>>> optimizer = torch.optim.AdamW(model.parameters())
>>> x, y = torch.rand(16, 8), torch.arange(16) % 2  # features in [0, 1]
>>> loss = adversarial_training_step(model, optimizer, x, y, 0.1, minimum=0, maximum=1)
>>> worst = pgd(model, x, y, epsilon=0.1, steps=40, minimum=0, maximum=1)
>>> robust_accuracy = (model.eval()(worst).argmax(1) == y).float().mean()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from vauban.errors import AttackError
from vauban.training.attack_region import Bound, Norm, Region, radius_of

Loss = Callable[[Any, Tensor], Tensor]
Forward = Callable[[Tensor], Any]


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float | Tensor, *, norm: Norm = "linf",
    minimum: Bound = None, maximum: Bound = None, mask: Tensor | None = None,
    targeted: bool = False, loss: Loss = F.cross_entropy, forward: Forward | None = None,
    eval_mode: bool = True, loss_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """One step to the edge of the ball: x + epsilon * sign(g), or x + epsilon * g / |g| for "l2".

    Parameters, result and errors are `pgd`'s. With a random start (Wong et al. 2020, arXiv
    2001.03994) it is `pgd(..., steps=1, step_size=1.25 * epsilon)`.
    """
    return pgd(
        model, x, y, epsilon, steps=1, step_size=epsilon, random_start=False, norm=norm,
        minimum=minimum, maximum=maximum, mask=mask, targeted=targeted, loss=loss,
        forward=forward, eval_mode=eval_mode, loss_scale=loss_scale,
    )  # fmt: skip


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float | Tensor, *, steps: int = 10,
    step_size: float | Tensor | None = None, random_start: bool = True,
    generator: torch.Generator | None = None, norm: Norm = "linf", minimum: Bound = None,
    maximum: Bound = None, mask: Tensor | None = None, targeted: bool = False,
    loss: Loss = F.cross_entropy, forward: Forward | None = None, eval_mode: bool = True,
    loss_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Projected gradient ascent on the loss around `x` (descent if `targeted`); the last point.

    :param x: [batch, ...] floating point, within [minimum, maximum].
    :param y: labels for `loss`; with `targeted`, what the model is to be made to say.
    :param epsilon: radius >= 0 in units of `x`, one or one per example [batch]. The norm is over
        a whole example: for [batch, tokens, width] over tokens and width, not per token.
    :param step_size: as `epsilon`; default 2.5 * epsilon / steps.
    :param random_start: begin uniformly in the ball instead of at `x`; `generator` may be on
        another device than `x`.
    :param minimum: with `maximum` the range in the model's own units (after normalisation an
        image's is not 0 to 1): a number, a tensor that broadcasts to `x`, or None for no bound.
    :param mask: [batch, tokens] or however many of `x`'s leading dimensions; 0 or False where `x`
        must stay: padding, features that an attacker can't reach.
    :param loss: (output, y) -> scalar, or one value per example.
    :param forward: how `x` goes through `model`, default `model(x)`: from a hidden layer on, with
        further arguments.
    :param eval_mode: attack the model as it will be used: batch norm by running statistics, no
        dropout. False leaves the flags alone; batch norm is then by the attacked batch.
    :param loss_scale: factor on the loss against float16 underflow, `GradScaler.get_scale()`;
        divided by 16 for as long as it overflows.
    :return: a new tensor of `x`'s shape, dtype and device, without history, within ball and range
        up to rounding of its dtype (the sums are float32 or better). Empty input: an empty copy.
    :raises AttackError: `x` is not floating point or out of range, an argument does not fit, the
        loss does not depend on `x`, or its gradient is not finite.
    """
    if steps < 1 or not 0 < loss_scale < math.inf:
        raise AttackError(f"steps={steps} and loss_scale={loss_scale} must be positive")
    with torch.inference_mode(mode=False), torch.no_grad():
        region = Region.around(x, epsilon, norm, (minimum, maximum), mask)
        stride = 2.5 / steps * region.epsilon
        if step_size is not None:
            stride = radius_of("step_size", step_size, region.center)
        if x.numel() == 0:
            return region.center.to(x.dtype)
        point = region.draw(generator) if random_start else region.center
        run = model if forward is None else forward
        objective = _Objective(run, y, loss, x.dtype, loss_scale)
        with untouched(model, eval_mode=eval_mode):
            for _ in range(steps):
                ascent = region.direction(objective.gradient(point, region.free))
                point = region.project(point + stride * (-ascent if targeted else ascent))
        return point.to(x.dtype)


def adversarial_training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor,
    epsilon: float | Tensor, *, steps: int = 10, step_size: float | Tensor | None = None,
    random_start: bool = True, generator: torch.Generator | None = None, norm: Norm = "linf",
    minimum: Bound = None, maximum: Bound = None, mask: Tensor | None = None,
    loss: Loss = F.cross_entropy, forward: Forward | None = None, eval_mode: bool = True,
    adversarial_share: float = 1.0, autocast_dtype: torch.dtype | None = None,
    scaler: GradScaler | None = None,
) -> Tensor:  # fmt: skip
    """One optimizer step on what `pgd` makes of (x, y): Madry et al. 2018, section 2.

    The attack's parameters are `pgd`'s; FGSM is `steps=1, step_size=epsilon, random_start=False`.
    The training pass runs in the mode that the caller left the model in. Where `x` has a history
    (the layers below an embedding), the gradient goes on into it.

    :param adversarial_share: of the loss, in (0, 1]; the rest is the clean input's (Goodfellow et
        al. 2015, section 6: 0.5).
    :param autocast_dtype: run the attack and the forward passes under autocast of this dtype.
    :param scaler: for float16; updated here, and it skips the step where gradients overflow.
    :return: the loss before the step, detached. An empty batch changes nothing and returns 0.
    :raises AttackError: as `pgd`; or, without a scaler, the loss is not finite. Parameters are
        then what they were.
    """
    if not 0 < adversarial_share <= 1:
        raise AttackError(f"adversarial_share={adversarial_share} is not in (0, 1]")
    device, run = x.device.type, model if forward is None else forward
    scaler = scaler or GradScaler(device, enabled=False)
    with torch.autocast(device, autocast_dtype) if autocast_dtype else nullcontext():
        attacked = pgd(
            model, x, y, epsilon, steps=steps, step_size=step_size, random_start=random_start,
            generator=generator, norm=norm, minimum=minimum, maximum=maximum, mask=mask,
            loss=loss, forward=forward, eval_mode=eval_mode, loss_scale=scaler.get_scale(),
        )  # fmt: skip
        if x.numel() == 0:
            return torch.zeros((), device=x.device)
        if x.requires_grad:
            attacked = x + (attacked - x.detach())
        value = adversarial_share * loss(run(attacked), y).mean()
        if adversarial_share < 1:  # a copy, because a first layer may work in place
            value = value + (1 - adversarial_share) * loss(run(x.clone()), y).mean()
    if not scaler.is_enabled() and not torch.isfinite(value):
        raise AttackError("the training loss is not finite")
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(value).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    # Inside a caller's autocast the next pass would meet the weights cast before this step.
    torch.clear_autocast_cache()
    return value.detach()


@contextmanager
def untouched(model: nn.Module, *, eval_mode: bool = True) -> Iterator[None]:
    """Every submodule's train/eval flag and every buffer are afterwards what they were.

    :param eval_mode: inside, the whole model is in eval mode; False leaves it as it is.
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        if eval_mode:
            model.eval()
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for module, name, buffer, saved in buffers:
            setattr(module, name, buffer)
            # A write that changes nothing would still break graphs that the caller holds.
            if not torch.equal(buffer, saved):
                with torch.no_grad():
                    buffer.copy_(saved)


@dataclass(frozen=True, slots=True)
class _Objective:
    run: Forward
    y: Tensor
    loss: Loss
    dtype: torch.dtype
    scale: float

    def gradient(self, point: Tensor, free: Tensor) -> Tensor:
        """The loss's with respect to `point`, up to a positive factor; 0 where not `free`."""
        scale = self.scale
        labels = self.y.clone() if self.y.is_inference() else self.y
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            # A copy, because a leaf can't be changed in place and a first layer may do so.
            value = self.loss(self.run(leaf.to(self.dtype, copy=True)), labels).float().sum()
            while value.requires_grad:
                (gradient,) = torch.autograd.grad(
                    value * scale, leaf, retain_graph=scale > 1, allow_unused=True
                )
                if gradient is None:
                    break
                # Chosen, not multiplied: the gradient of padding is often NaN.
                gradient = torch.where(free, gradient, 0.0)
                if torch.isfinite(gradient).all():
                    return gradient
                if scale <= 1:
                    raise AttackError("the loss's gradient with respect to x is not finite")
                scale = max(1.0, scale / 16)
        raise AttackError("the loss does not depend on x, or not differentiably")
