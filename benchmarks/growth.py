"""How a cost grows with a size: the exponent b of cost = a * size ** b."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Growth:
    """`low` and `high` bound the exponent at 95%; `explained` is R squared of the logarithms."""

    exponent: float
    low: float
    high: float
    explained: float

    def __str__(self) -> str:
        return f"size^{self.exponent:.2f} ({self.low:.2f} to {self.high:.2f})"


def growth(costs: Mapping[float, Sequence[float]]) -> Growth:
    """Least squares on logarithms, every repeat a point; Student's interval.

    :param costs: positive sizes to the positive costs of the repeats.
    :raises ValueError: fewer than two sizes or three points, or one that is not positive.
    """
    from scipy.stats import linregress, t

    points = [(size, cost) for size, repeats in costs.items() for cost in repeats]
    if len(costs) < 2 or len(points) < 3:
        raise ValueError("growth needs at least two sizes and three points")
    if any(size <= 0 or not cost > 0 for size, cost in points):
        raise ValueError("sizes and costs must be above 0")
    logs = [(math.log(size), math.log(cost)) for size, cost in points]
    line = linregress(*zip(*logs, strict=True))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(points) - 2)) * float(line.stderr)
    slope = float(line.slope)
    return Growth(slope, slope - half, slope + half, float(line.rvalue) ** 2)
