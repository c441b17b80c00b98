"""Draw learning curves from ``metrics.jsonl`` files, smoothed and thinned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ossicle.train.tracking import read_metrics
from ossicle_lab.report.figures import ChartStyle, Line, Point, line_chart, thin_points

SMOOTHING_SHARE = 0.05
"""Share of all records that each point of a training curve averages."""


@dataclass(frozen=True)
class LossCurve:
    """The file that holds a run's losses, and how the curve is shown."""

    name: str
    look: int
    path: Path
    split: str = "train"


def loss_chart(title: str, curves: Sequence[LossCurve]) -> Markup | None:
    """Draw running means of the finite losses, in nats, by optimiser step. Return None if no file has a loss."""
    found = [_losses(curve) for curve in curves]
    lines = [
        Line(curve.name, curve.look, thin_points(points)) for curve, (points, _) in zip(curves, found, strict=True)
    ]
    if not any(line.points for line in lines):
        steps = sum(left_out for _, left_out in found)
        text = '<p class="soft">{}: none of the {} recorded values is finite.</p>'
        return Markup(text).format(title, steps) if steps else None
    return line_chart(lines, ChartStyle(title, "optimiser step", markers=False, note="nats"))


def _losses(curve: LossCurve) -> tuple[list[Point], int]:
    """Return the points of a curve, and the number of records without a finite loss."""
    if not curve.path.is_file():
        return [], 0
    records = [r for r in read_metrics(curve.path) if r["split"] == curve.split and "loss" in r]
    kept = [(record["step"], float(record["loss"])) for record in records if _is_finite(record["loss"])]
    reach = 0 if curve.split != "train" else round(SMOOTHING_SHARE * len(kept) / 2)
    points = []
    for i, (step, _) in enumerate(kept):
        near = min(reach, i, len(kept) - 1 - i)
        window = [loss for _, loss in kept[i - near : i + near + 1]]
        points.append(Point(step, sum(window) / len(window)))
    return points, len(records) - len(kept)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
