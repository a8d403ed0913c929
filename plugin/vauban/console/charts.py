"""Coordinates of the two pictures of a user: scores over queries, and queries on the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SCORES_WIDTH: Final = 640
SCORES_HEIGHT: Final = 200
MAP_SIZE: Final = 360
_EDGE: Final = 12
_AGES: Final = 4
_AIR: Final = 1.15
_LEAST_TOP: Final = 0.1


@dataclass(frozen=True, slots=True)
class Scores:
    """`path`: of the curve, for an SVG of `SCORES_WIDTH` by `SCORES_HEIGHT`. `bounds`: name and
    height of each level."""

    path: str
    bounds: tuple[tuple[str, float], ...]
    last: float
    highest: float
    queries: int
    begins: float
    ends: float


@dataclass(frozen=True, slots=True)
class Map:
    """Dots as SVG paths. `ages`: the queries in groups, oldest first."""

    cells: str
    ages: tuple[str, ...]


def scores(points: Sequence[Mapping[str, float]], levels: Mapping[str, float]) -> Scores | None:
    """None where there is nothing to draw."""
    if not points:
        return None
    values = [point["score"] for point in points]
    top = min(1.0, _AIR * max(*values, *levels.values(), _LEAST_TOP))

    def height(score: float) -> float:
        share = min(max(score / top, 0.0), 1.0)
        return round(SCORES_HEIGHT - _EDGE - share * (SCORES_HEIGHT - 2 * _EDGE), 1)

    inner = SCORES_WIDTH - 2 * _EDGE
    step = inner / max(len(points) - 1, 1)
    places = [(_EDGE + n * step, height(value)) for n, value in enumerate(values)]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for x, y in places[1:]:
        path += f"H{x:.1f}V{y:.1f}"
    if len(places) == 1:
        path += f"h{inner}"
    return Scores(
        path=path,
        bounds=tuple((name, height(bound)) for name, bound in levels.items()),
        last=values[-1],
        highest=max(values),
        queries=len(points),
        begins=points[0]["time"],
        ends=points[-1]["time"],
    )


def places(points: Sequence[Mapping[str, float]], cells: Sequence[Sequence[float]]) -> Map | None:
    """None where there is no map."""
    if not points or not cells:
        return None
    asked = [(point["x"], point["y"]) for point in points]
    every = [*asked, *((x, y) for x, y in cells)]
    low = [min(place[axis] for place in every) for axis in (0, 1)]
    span = max(max(place[axis] for place in every) - low[axis] for axis in (0, 1)) or 1.0

    def dots(found: Sequence[Sequence[float]]) -> str:
        return "".join(f"M{_at(x, low[0], span)} {_at(y, low[1], span)}h0" for x, y in found)

    size = -(-len(asked) // _AGES)
    groups = [asked[start : start + size] for start in range(0, len(asked), size)]
    return Map(dots(cells), tuple(dots(group) for group in groups))


def _at(value: float, low: float, span: float) -> Any:
    return round(_EDGE + (value - low) / span * (MAP_SIZE - 2 * _EDGE), 1)
