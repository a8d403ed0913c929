"""Where an attack on continuous input may go: a ball, a range, and the free positions in them.

All sums are float32 or better, whatever the input: squares of float16 overflow at 256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vauban.errors import AttackError

Norm = Literal["linf", "l2"]
Bound = float | Tensor | None


@dataclass(frozen=True, slots=True)
class Region:
    """Where an attack may go. The tensors broadcast to `center`; `free` is boolean, full size."""

    center: Tensor
    epsilon: Tensor
    norm: Norm
    low: Tensor
    high: Tensor
    free: Tensor

    @classmethod
    def around(
        cls, x: Tensor, epsilon: float | Tensor, norm: Norm, bounds: tuple[Bound, Bound],
        mask: Tensor | None,
    ) -> Region:  # fmt: skip
        if not x.is_floating_point() or x.dim() == 0:
            raise AttackError(
                f"x must be floating point [batch, ...], got {x.dtype} {list(x.shape)}; scale an"
                " image to float, attack the embeddings of tokens"
            )
        if norm not in ("linf", "l2"):
            raise AttackError(f"norm {norm!r} is neither 'linf' nor 'l2'")
        center = x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)
        low = _bound("minimum", bounds[0], -math.inf, center)
        high = _bound("maximum", bounds[1], math.inf, center)
        free = _free(mask, center)
        # Scaling x may have left it a few units in the last place outside.
        slack = 4 * torch.finfo(x.dtype).eps
        inside = center >= low - slack * (1 + low.abs())
        inside &= center <= high + slack * (1 + high.abs())
        if not (inside | ~free).all():
            raise AttackError(
                "x is not within [minimum, maximum], or NaN; the range is that of the model's"
                " own input, after any normalisation"
            )
        low, high = torch.minimum(low, center), torch.maximum(high, center)
        return cls(center, radius_of("epsilon", epsilon, center), norm, low, high, free)

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """Uniform in the ball, then moved into the range."""
        center, device = self.center, generator.device if generator else self.center.device
        make = torch.rand if self.norm == "linf" else torch.randn
        noise = make(center.shape, generator=generator, device=device, dtype=center.dtype)
        noise = noise.to(center.device)
        if self.norm == "linf":
            return self.project(center + self.epsilon * (2 * noise - 1))
        # The share of a d-ball within radius r is r^d.
        radius = torch.rand(len(center), generator=generator, device=device, dtype=center.dtype)
        free_count = self.free.reshape(len(center), -1).sum(dim=1).clamp_min(1)
        radius = _column(radius.to(center.device) ** (1 / free_count), center)
        return self.project(center + self.epsilon * radius * _unit(noise * self.free))

    def direction(self, gradient: Tensor) -> Tensor:
        """The unit step that raises the loss most; 0 for an example without gradient."""
        return gradient.sign() if self.norm == "linf" else _unit(gradient)

    def project(self, point: Tensor) -> Tensor:
        offset = torch.where(self.free, point - self.center, 0.0)
        if self.norm == "linf":
            offset = offset.clamp(-self.epsilon, self.epsilon)
        else:
            length = torch.linalg.vector_norm(offset.reshape(len(offset), -1), dim=1)
            tiny = torch.finfo(length.dtype).tiny
            offset = offset * (self.epsilon / _column(length, offset).clamp_min(tiny)).clamp_max(1)
        # The range holds the centre, so this shortens the offset in each coordinate.
        return torch.clamp(self.center + offset, self.low, self.high)


def _unit(vectors: Tensor) -> Tensor:
    """Each example at L2 length 1; zeros stay. Squares neither underflow nor overflow."""
    rows = vectors.reshape(len(vectors), -1)
    peak = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(peak > 0, peak, 1.0)
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return (rows / length.clamp_min(1)).reshape(vectors.shape)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """[batch] or a scalar, to broadcast against `like` [batch, ...]."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def radius_of(name: str, value: float | Tensor, center: Tensor) -> Tensor:
    """One number, or one per example [batch], to broadcast against `center`."""
    radius = torch.as_tensor(value, dtype=center.dtype, device=center.device).detach()
    if radius.dim() and radius.shape != center.shape[:1]:
        raise AttackError(f"{name} {list(radius.shape)} is not one number, nor one per example")
    if not ((radius >= 0) & radius.isfinite()).all():
        raise AttackError(f"{name} must be finite and at least 0")
    return _column(radius, center)


def _bound(name: str, value: Bound, none: float, center: Tensor) -> Tensor:
    bound = torch.as_tensor(
        none if value is None else value, dtype=center.dtype, device=center.device
    ).detach()
    try:
        return bound.expand(center.shape)
    except RuntimeError as error:
        shapes = f"{list(bound.shape)} does not broadcast to x {list(center.shape)}"
        raise AttackError(f"{name} {shapes}") from error


def _free(mask: Tensor | None, center: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(center, dtype=torch.bool)
    if mask.shape != center.shape[: mask.dim()]:
        shapes = f"{list(mask.shape)} is not how x {list(center.shape)} begins"
        raise AttackError(f"mask {shapes}")
    free = mask.to(center.device, torch.bool)
    return free.reshape(*mask.shape, *[1] * (center.dim() - mask.dim())).expand(center.shape)
