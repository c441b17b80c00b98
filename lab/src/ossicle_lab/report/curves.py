"""Draw learning curves from ``metrics.jsonl`` files, smoothed and thinned."""

from __future__ import annotations

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
    """Draw running means of the loss, in nats, by optimiser step. Return None if no file has a loss."""
    lines = [Line(curve.name, curve.look, thin_points(_losses(curve))) for curve in curves]
    if not any(line.points for line in lines):
        return None
    return line_chart(lines, ChartStyle(title, "optimiser step", markers=False, note="nats"))


def _losses(curve: LossCurve) -> list[Point]:
    if not curve.path.is_file():
        return []
    records = [r for r in read_metrics(curve.path) if r["split"] == curve.split and "loss" in r]
    reach = 0 if curve.split != "train" else round(SMOOTHING_SHARE * len(records) / 2)
    values = [record["loss"] for record in records]
    points = []
    for i, record in enumerate(records):
        near = min(reach, i, len(records) - 1 - i)
        window = values[i - near : i + near + 1]
        points.append(Point(record["step"], sum(window) / len(window)))
    return points
