"""Draw a score against the time of stage 1, from studies with different lengths of it.

    python -m ossicle_lab.analysis.score_by_time STUDY... --out wer.png

Each study is a folder with the ``results.json`` of ``ossicle study``. A point is the mean over the seeds of a row; its
time is the number of steps times the processor time of a step, which the study has measured. The command prints the
points too.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ossicle.errors import DataError
from ossicle_lab.analysis.drawing import MARKERS, PALETTE, new_figure, save, style
from ossicle_lab.analysis.plots import LineEnd, label_ends


class Point(NamedTuple):
    """The score of a row after one length of stage 1."""

    minutes: float
    """Processor time of stage 1."""
    steps: int
    score: float


def points_of(studies: Sequence[Path], metric: str) -> dict[str, list[Point]]:
    """Return the points of each row with a stage 1, in the order of time; the first study that has a length gives it.

    Raises `DataError` if a study has no results, or if none has ``metric``.
    """
    found: dict[str, dict[int, Point]] = defaultdict(dict)
    for study in studies:
        record = _read(study / "results.json")
        for row in record["rows"]:
            settings, scores = record["settings"].get(row["name"], {}), row["scores"]
            steps = settings.get("used", {}).get(row["mode"], {}).get("steps", 0)
            if steps and metric in scores and settings["cost_s_per_step"]:
                minutes = steps * settings["cost_s_per_step"] / 60
                found[row["name"]].setdefault(steps, Point(minutes, steps, scores[metric]["mean"]))
    if not found:
        raise DataError(f"{studies[0]}: no study has a row with stage 1 and the metric {metric!r}")
    return {name: sorted(points.values()) for name, points in found.items()}


def plot_by_time(rows: Mapping[str, Sequence[Point]], out: Path, *, label: str, top: float | None = None) -> Path:
    """Draw one line per row: the score over the minutes of stage 1, on a logarithmic scale, up to ``top``."""
    with style():
        figure = new_figure(width=7.2, height=4.2)
        axes = figure.subplots()
        ends = []
        looks = zip(itertools.cycle(PALETTE), itertools.cycle(MARKERS), strict=False)
        for (name, points), (colour, marker) in zip(rows.items(), looks, strict=False):
            x, y = [point.minutes for point in points], [point.score for point in points]
            axes.plot(x, y, color=colour, marker=marker, linewidth=2, zorder=3)
            ends.append(LineEnd(name, x[-1], min(y[-1], top or y[-1]), colour))
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        steps = (1, 1.5, 2, 3, 5, 7) if high / low < 20 else (1, 3)
        ticks = [t for power in range(-2, 5) for step in steps if low <= (t := step * 10.0**power) <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="processor time of stage 1 (minutes)", ylabel=label, ylim=(0, top))
        axes.grid(axis="y")
        label_ends(axes, ends)
        return save(figure, out)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); finish the study first") from error
    return found


def main(
    studies: Annotated[list[Path], typer.Argument(help="Folders of studies.")],
    out: Annotated[Path, typer.Option(help="The image.")] = Path("score-by-time.png"),
    metric: Annotated[str, typer.Option(help="Column of the results.")] = "asr:wer",
    label: Annotated[str, typer.Option(help="Name of the score in the image.")] = "WER (%)",
    top: Annotated[float | None, typer.Option(help="Upper end of the scale.")] = None,
) -> None:
    """Print the points of every row, and draw them."""
    rows = points_of(studies, metric)
    print("| row | steps | minutes | score |\n|---|---|---|---|")
    for name, points in rows.items():
        for point in points:
            print(f"| {name} | {point.steps} | {point.minutes:.2f} | {point.score:.1f} |")
    print(plot_by_time(rows, out, label=label, top=top))


if __name__ == "__main__":
    typer.run(main)
