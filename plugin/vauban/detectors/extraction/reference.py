"""What honest callers look like: the projection, and how far each statistic goes among people.

Statistics become one number in three monotone steps, each a table in the reference:

1. each statistic is centred and scaled by the median and the spread that honest people have in
   a window of that length;
2. an arm (`ARMS`) is a weighted sum of those; how rare its value is among honest people of that
   length is a tail probability; so is how rare the mean of its values over segments is, in which
   evidence accumulates (`accumulated.py`); the arms of all windows and means compete on it;
3. the rarest of them, each less what it gives up, is compared with the rarest that an honest
   person ever shows in `HORIZON` queries, whatever arm, window or mean it comes from. So one number
   controls how often an honest person is ever suspected, and every arm has its own budget of that
   (weighted tests; Genovese, Roeder and Wasserman 2006). Windows and the arms of plain thieves, who
   are orders of magnitude rarer than anybody honest, give up most of theirs to those that find
   mixed and chained theft by a hair.

Beyond what the simulated people resolve, tails are continued exponentially.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vauban.detectors.extraction.accumulated import ARMS, Accumulated
from vauban.detectors.extraction.features import STATISTICS
from vauban.detectors.extraction.projection import Floats, Projection
from vauban.errors import WeightsError

CHAIN_MIN_QUERIES: Final = 192
"""Below, few sessions are over, and how alike or short they are says nothing."""
HORIZON: Final = 5120
LEVELS: Final = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)
"""The quantiles that the tables hold."""
TENFOLDS: Final = 6.0
"""A score of 1 is reached by one honest person in 10 to the power of this."""
ACCUMULATED: Final = "accumulated_"
_EARLY: Final = dict.fromkeys(ARMS, 1.0)
"""How many tenfolds of its budget an arm gives up."""
_SHORT_WINDOW: Final = _EARLY | {"chain": math.inf, "threads": math.inf}
_WINDOW: Final = dict.fromkeys(ARMS, 1.5)
_MEAN: Final = _WINDOW | {"mixed": 0.0, "chain": 0.35, "threads": 0.2, "sweep": 0.75}
_PATIENCE: Final = 5.5
"""Segments below which every mean gives up as much as a short window: it says little more."""
_CLIP: Final = 12.0
_FILE: Final = "reference.safetensors"


@dataclass(frozen=True, slots=True)
class Suspicion:
    """How unlike honest people a window is.

    `tail`: -log10 of the share of honest windows as extreme in that arm, less what the arm gives
    up; `arm` the rarest one, with `ACCUMULATED` before it where it is a mean.
    """

    tail: float
    arm: str

    def __lt__(self, other: Suspicion) -> bool:
        return self.tail < other.tail


NONE: Final = Suspicion(0.0, "")


@dataclass(frozen=True, slots=True)
class _Tables:
    """Those of one window length."""

    centre: Floats
    up: Floats
    down: Floats
    arm_tails: list[list[float]]


@dataclass(frozen=True, slots=True)
class Reference:
    """`lengths`: window lengths of the tables, ascending [g]. `centre`, `up`, `down`: [g, stats].
    `arm_tails`: values of each arm at `LEVELS` [g, arms, levels]. `segments`: of the tables of
    means, ascending [s]; `mean_tails`: [s, arms, levels]. `ever`: the rarest tail that a person
    ever shows, at `LEVELS`."""

    projection: Projection
    lengths: Floats
    centre: Floats
    up: Floats
    down: Floats
    arm_tails: Floats
    segments: Floats
    mean_tails: Floats
    ever: Floats
    about: Mapping[str, Any] = field(default_factory=dict)
    _at: dict[int, _Tables] = field(default_factory=dict, init=False, repr=False, compare=False)

    def arm_values(self, statistics: Floats, length: int) -> Floats:
        """float32 [arms]: how far the statistics are from an honest median, in honest spreads."""
        at = self._tables(length)
        offset = statistics - at.centre
        scaled = offset / np.where(offset > 0, at.up, at.down)
        values: Floats = _WEIGHTS @ np.clip(scaled, -_CLIP, _CLIP)
        return values

    def suspect(self, values: Floats, length: int) -> Suspicion:
        """The rarest arm of one window.

        :param values: of `arm_values`.
        """
        given_up = _WINDOW if length >= CHAIN_MIN_QUERIES else _SHORT_WINDOW
        return _rarest(values, self._tables(length).arm_tails, "", given_up)

    def suspect_all(self, accumulated: Accumulated) -> Suspicion:
        """The rarest arm of all that has accumulated."""
        if accumulated.segments < self.segments[0]:
            return NONE
        tables = _between(self.segments, accumulated.segments)(self.mean_tails).tolist()
        given_up = _MEAN if accumulated.segments >= _PATIENCE else _EARLY
        return _rarest(accumulated.means, tables, ACCUMULATED, given_up)

    def score(self, suspicion: Suspicion) -> float:
        """In [0, 1]: a sixth for every tenfold by which honest people are ever as suspect."""
        return min(1.0, tail_of(suspicion.tail, self.ever) / TENFOLDS)

    def _tables(self, length: int) -> _Tables:
        found = self._at.get(length)
        if found is None:  # there are no more lengths than queries in a window
            at = _between(self.lengths, length)
            found = self._at[length] = _Tables(
                at(self.centre), at(self.up), at(self.down), at(self.arm_tails).tolist()
            )
        return found

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {
            "matrix": self.projection.matrix,
            "centres": self.projection.centres,
            "sides": self.projection.sides,
            **{name: getattr(self, name) for name in _TABLES},
        }
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
            directory / _FILE,
            {"about": json.dumps(self.about), "statistics": json.dumps(STATISTICS),
             "arms": _ARMS},
        )  # fmt: skip

    @classmethod
    def load(cls, directory: Path | None = None) -> Reference:
        """:raises WeightsError: the file is missing, damaged, or for other statistics."""
        path = (directory or shipped()) / _FILE
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if json.loads(metadata["statistics"]) != list(STATISTICS):
                raise KeyError("statistics")
            if metadata["arms"] != _ARMS:
                raise KeyError("arms")
            projection = Projection(tensors["matrix"], tensors["centres"], tensors["sides"])
            tables = {name: tensors[name] for name in _TABLES}
            return cls(projection, **tables, about=json.loads(metadata["about"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(
                f"{path}: not a reference of this version ({type(error).__name__}); make one with"
                " `vauban extraction calibrate`"
            ) from None


_TABLES: Final = (
    "lengths", "centre", "up", "down", "arm_tails", "segments", "mean_tails", "ever",
)  # fmt: skip
_ARMS: Final = json.dumps([{name: dict(arm) for name, arm in ARMS.items()}, _EARLY, _WINDOW, _MEAN])
_WEIGHTS: Final = np.array(
    [[arm.get(name, 0.0) for name in STATISTICS] for arm in ARMS.values()], dtype=np.float32
)
_DECADES: Final = tuple(-math.log10(1.0 - level) for level in LEVELS)
_SLOPE_FROM: Final = LEVELS.index(0.9)


@dataclass(frozen=True, slots=True)
class _Between:
    """Linear interpolation between two rows of a table."""

    low: int
    share: float

    def __call__(self, table: Floats) -> Floats:
        found: Floats = table[self.low] * (1 - self.share) + table[self.low + 1] * self.share
        return found


def _between(marks: Floats, at: float) -> _Between:
    high = min(max(int(np.searchsorted(marks, at)), 1), len(marks) - 1)
    below, above = math.log(marks[high - 1]), math.log(marks[high])
    share = (math.log(at) - below) / (above - below)
    return _Between(high - 1, min(max(share, 0.0), 1.0))


def _rarest(
    values: Floats,
    tables: Sequence[Sequence[float]],
    prefix: str,
    given_up: Mapping[str, float],
) -> Suspicion:
    found = NONE
    for name, value, table in zip(ARMS, values.tolist(), tables, strict=True):
        if value > table[0]:
            found = max(found, Suspicion(tail_of(value, table) - given_up[name], prefix + name))
    return found


def tail_of(value: float, table: Sequence[float] | Floats) -> float:
    """-log10 of the share of honest values at or above `value`.

    :param table: honest values at `LEVELS`.
    """
    if value <= table[0]:
        return 0.0
    place = bisect_left(table, value)
    if place < len(table):
        run = float(table[place]) - float(table[place - 1])
        share = (value - float(table[place - 1])) / run
        return _DECADES[place - 1] + share * (_DECADES[place] - _DECADES[place - 1])
    run = max(float(table[-1]) - float(table[_SLOPE_FROM]), 1e-3)
    slope = (_DECADES[-1] - _DECADES[_SLOPE_FROM]) / run
    return _DECADES[-1] + (value - float(table[-1])) * slope


def shipped() -> Path:
    return Path(__file__).parents[2] / "data" / "extraction"
