"""Learning curves from ``metrics.jsonl``: smoothed and thinned, as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ossicle.train.tracking import read_metrics
from ossicle_lab.report.charts import Axes, Line, Point, chart, nice_ticks, thin

SMOOTH_SHARE = 0.05
"""Of all records: how many a point is the mean of."""


@dataclass(frozen=True)
class LossCurve:
    """Where the losses of a run are."""

    name: str
    look: int
    path: Path
    split: str = "train"


def loss_chart(title: str, curves: Sequence[LossCurve]) -> Markup:
    """Running means of the loss by step. Raises `ValueError` where no file holds one."""
    lines = [Line(curve.name, curve.look, thin(_losses(curve))) for curve in curves]
    most = max((line.points[-1].x for line in lines if line.points), default=1.0)
    ticks = [tick for tick in nice_ticks(0, most, 4) if tick <= most * (1 + 1e-9)]
    axes = Axes(title, "optimiser step", [(tick, f"{tick:g}") for tick in ticks], markers=False, note="nats")
    return chart(lines, axes)


def _losses(curve: LossCurve) -> list[Point]:
    if not curve.path.is_file():
        return []
    records = [r for r in read_metrics(curve.path) if r["split"] == curve.split and "loss" in r]
    reach = 0 if curve.split != "train" else round(SMOOTH_SHARE * len(records) / 2)
    values = [record["loss"] for record in records]
    points = []
    for i, record in enumerate(records):
        near = min(reach, i, len(records) - 1 - i)
        window = values[i - near : i + near + 1]
        points.append(Point(record["step"], sum(window) / len(window)))
    return points
