"""The picture of `vauban extraction replay`: scores over time, and maps of what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vauban.detectors.extraction.detector import ExtractionDetector
from vauban.detectors.extraction.plane import Plane
from vauban.detectors.extraction.projection import Floats
from vauban.detectors.extraction.replay import UserReport
from vauban.errors import ConfigError

MOST_USERS = 6


def draw(target: Path, reports: Sequence[UserReport], detector: ExtractionDetector) -> None:
    """Left: score over queries of the most suspect users. Right of it: each one's window on the
    first two axes of the reference's cells, which are drawn in grey.

    :raises ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib; install vauban[plot]") from None
    worst = sorted(reports, key=lambda report: -report.peak_score)[:MOST_USERS]
    figure = Figure(figsize=(4.2 * (1 + (len(worst) + 1) // 2), 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 1 + (len(worst) + 1) // 2)
    scores = figure.add_subplot(grid[:, 0])
    _draw_scores(scores, worst, detector)
    plane = Plane.of(detector.reference.projection)
    for place, report in enumerate(worst):
        part = figure.add_subplot(grid[place % 2, 1 + place // 2])
        _draw_map(part, report, plane.cells, plane(detector.vectors(report.user)))
    figure.savefig(target)


def _draw_scores(axes: Any, reports: Sequence[UserReport], detector: ExtractionDetector) -> None:
    for report in reports:
        axes.plot(
            [step.query for step in report.steps],
            [step.score for step in report.steps],
            drawstyle="steps-post",
            label=report.user[:24],
        )
    policy = detector.policy
    for level, bound in policy.levels:
        name = level.name.lower()
        axes.axhline(bound, color="0.75", linewidth=0.8)
        axes.annotate(name, (1.0, bound), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8, color="0.4")  # fmt: skip
    axes.set(xlabel="query", ylabel="score", ylim=(0, 1.02), title="score over time")
    if reports:
        axes.legend(fontsize=8, loc="upper left")


def _draw_map(axes: Any, report: UserReport, cells: Floats, asked: Floats) -> None:
    axes.scatter(cells[:, 0], cells[:, 1], s=6, color="0.8", linewidths=0)
    shade = np.linspace(0.0, 1.0, max(len(asked), 1))[: len(asked)]
    axes.scatter(asked[:, 0], asked[:, 1], s=9, c=shade, cmap="viridis", linewidths=0)
    axes.set(xticks=[], yticks=[], title=f"{report.user[:24]}: {report.action}")
