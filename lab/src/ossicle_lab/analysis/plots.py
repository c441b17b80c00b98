"""Draw the figures of a run: losses, retrieval by layer, similarity before and after. Needs matplotlib.

Every function takes plain numbers, writes one image in the format of the suffix of ``out``, and returns its path.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ossicle.errors import DataError
from ossicle.train.tracking import read_metrics
from ossicle_lab.analysis.drawing import MARKERS, PALETTE, new_figure, save, separate_labels, style, thin_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ossicle.inspect.alignment import AlignmentRow


def plot_loss(metrics_paths: Mapping[str, Path], out: Path, *, key: str = "loss", window: int = 25) -> Path:
    """Draw the loss by optimiser step, one line per run: faint as logged, strong as a running mean.

    Args:
        metrics_paths: the ``metrics.jsonl`` of each run.
        out: the image.
        key: name of the logged value, in nats.
        window: number of records in the running mean.

    Raises:
        DataError: a file has no training step with ``key``.
    """
    with style():
        figure = new_figure(width=7.2, height=4.0)
        axes = figure.subplots()
        ends = []
        for (name, path), colour in zip(metrics_paths.items(), itertools.cycle(PALETTE), strict=False):
            steps, losses = _read_losses(path, key)
            smooth = _running_mean(losses, window)
            axes.plot(steps, losses, color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps, smooth, color=colour, linewidth=2)
            axes.plot(steps[-1], smooth[-1], color=colour, marker="o", markersize=5, clip_on=False, zorder=3)
            ends.append(LineEnd(name, steps[-1], smooth[-1], colour))
        axes.set(xlabel="optimiser step", ylabel=f"training {key} (nats)")
        axes.set_xlim(left=0, right=max(end.step for end in ends))
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        label_ends(axes, ends)
        return save(figure, out)


def plot_retrieval_by_layer(runs: Mapping[str, Sequence[AlignmentRow]], out: Path) -> Path:
    """Draw R@1 by layer of the LLM in both directions, one line per run."""
    panels = (("speech → text", "speech_to_text_r1"), ("text → speech", "text_to_speech_r1"))
    layers = sorted({row.layer for rows in runs.values() for row in rows})
    with style():
        figure = new_figure(width=8.4, height=4.1)
        both = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        for axes, (title, field) in zip(both, panels, strict=True):
            looks = zip(itertools.cycle(PALETTE), itertools.cycle(MARKERS), strict=False)
            for (name, rows), (colour, marker) in zip(runs.items(), looks, strict=False):
                x, y = [row.layer for row in rows], [getattr(row, field) for row in rows]
                # markers at 0 and 100% lie on the edge of the axes
                axes.plot(x, y, color=colour, marker=marker, label=name, linewidth=2, clip_on=False, zorder=3)
            axes.set(title=title, xlabel="LLM layer (0 = input embeddings)", ylim=(0, 100), xticks=thin_ticks(layers))
            axes.grid(axis="y")
        both[0].set_ylabel("R@1 (%)")
        figure.legend(
            *both[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 4), handlelength=2.4
        )
        return save(figure, out)


def plot_similarity(before: ArrayLike, after: ArrayLike, out: Path) -> Path:
    """Draw two heat maps (N speech, N text) of cosine similarity on one scale: before and after pretraining."""
    pair = [np.asarray(before), np.asarray(after)]
    low, high = min(matrix.min() for matrix in pair), max(matrix.max() for matrix in pair)
    with style():
        figure = new_figure(width=8.4, height=4.2)
        both = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        for axes, matrix, title in zip(both, pair, ("before pretraining", "after pretraining"), strict=True):
            image = axes.imshow(matrix, vmin=low, vmax=high, cmap="Blues", interpolation="nearest")
            axes.set(title=title, xlabel="text (utterance)")
            for axis, count in ((axes.xaxis, matrix.shape[1]), (axes.yaxis, matrix.shape[0])):
                ticks = thin_ticks(range(1, count + 1))
                axis.set_ticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        both[0].set_ylabel("speech (utterance)")
        bar = figure.colorbar(image, ax=both, shrink=0.82, aspect=24, pad=0.02)
        bar.set_label("cosine similarity")
        bar.outline.set_visible(False)
        return save(figure, out)


def _read_losses(path: Path, key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return steps and values of the training records with ``key``."""
    records = [record for record in read_metrics(path) if record["split"] == "train" and key in record]
    if not records:
        raise DataError(f'{path}: no training step has "{key}"; plot a run that has logged it')
    return np.array([r["step"] for r in records]), np.array([r[key] for r in records], dtype=float)


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the ``window`` values around each one: fewer near both ends."""
    totals = np.concatenate(([0.0], np.cumsum(values)))
    centres = np.arange(len(values))
    reach = np.minimum(centres, window // 2)
    starts, ends = centres - reach, np.minimum(centres + reach + 1, len(values))
    means: NDArray[np.float64] = (totals[ends] - totals[starts]) / (ends - starts)
    return means


class LineEnd(NamedTuple):
    """The last point of a line and its name."""

    name: str
    step: float
    value: float
    colour: str


def label_ends(axes: Axes, ends: Sequence[LineEnd]) -> None:
    """Write each line's name to the right of the axes, at the height of its end unless names would overlap."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    ordered = sorted(ends, key=lambda end: end.value)
    heights = separate_labels([end.value for end in ordered], gap=0.065 * (high - low))
    for end, height in zip(ordered, heights, strict=True):
        axes.annotate(
            end.name,
            xy=(right, height),
            xytext=(10, 0),
            textcoords="offset points",
            color=end.colour,
            fontweight="bold",
            verticalalignment="center",
            annotation_clip=False,
        )
