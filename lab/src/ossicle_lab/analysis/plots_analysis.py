"""Draw the figures of `ossicle analyze`: geometry by layer, principal components, probes, token alignment.

Every function takes plain numbers, writes one image in the format of the suffix of ``out``, and returns its path.
Before and after training have the same colours in every figure, as do speech and text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ossicle_lab.analysis.drawing import FAINT, INK, MARKERS, PALETTE, new_figure, save, style, thin_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYER = "LLM layer (0 = input embeddings)"
SPEECH, TEXT, ENCODER = PALETTE[3], PALETTE[2], PALETTE[4]
STAGES = (PALETTE[0], PALETTE[1])
"""Colours of before and after training, as in `ossicle_lab.analysis.plots.plot_retrieval_by_layer`."""
LINKS = 40
"""Number of pairs whose points are joined by a line."""
TOKENS_SHOWN = 60
"""Most rows of a heat map; of a longer transcript only the first tokens are shown."""

Row = Mapping[str, Any]
"""The figures of one layer by their names in ``analysis.json``."""


def plot_geometry(stages: Mapping[str, Sequence[Row]], out: Path) -> Path:
    """Draw four panels by layer, with one colour per stage: cosine, Wasserstein similarity, modality gap and CKA."""
    panels = (
        ("cosine of pairs", ("matched", "mismatched")),
        ("Wasserstein similarity of pairs", ("wasserstein_matched", "wasserstein_mismatched")),
        ("modality gap", ("modality_gap",)),
        ("linear CKA of speech and text", ("cka",)),
    )
    with style():
        figure = new_figure(width=8.4, height=6.4)
        grid = figure.subplots(2, 2, sharex=True).flatten()
        for axes, (title, fields) in zip(grid, panels, strict=True):
            for (name, rows), colour, marker in zip(stages.items(), STAGES, MARKERS, strict=False):
                for field, dashes in zip(fields, ("-", ":"), strict=False):
                    y = [np.nan if row[field] is None else row[field] for row in rows]
                    x, label = [row["layer"] for row in rows], name if field == "matched" else "_"
                    axes.plot(x, y, dashes, color=colour, marker=marker, markersize=5, linewidth=2, label=label)
            axes.set(title=title, xticks=thin_ticks([row["layer"] for row in next(iter(stages.values()))]))
            axes.grid(axis="y")
        grid[2].set_ylim(bottom=0)
        for axes in grid[2:]:
            axes.set_xlabel(LAYER)
        handles, labels = grid[0].get_legend_handles_labels()
        handles += [_line("-"), _line(":")]
        figure.legend(handles, [*labels, "matched pairs", "mismatched"], loc="outside lower center", ncols=4)
        return save(figure, out)


def plot_components(stages: Mapping[str, Mapping[int, Any]], out: Path) -> Path:
    """Draw speech and text on their two leading principal components: one row per stage, one column per layer.

    ``stages`` has for each stage and layer the `ossicle_lab.analysis.components.Components` of 2N points:
    speech, then text.
    """
    layers = list(next(iter(stages.values())))
    with style():
        figure = new_figure(width=2.5 * len(layers) + 0.6, height=2.75 * len(stages) + 0.5)
        grid = figure.subplots(len(stages), len(layers), squeeze=False)
        for line, (name, by_layer) in zip(grid, stages.items(), strict=True):
            for axes, layer in zip(line, layers, strict=True):
                _scatter(axes, by_layer[layer])
            line[0].set_ylabel(name, fontweight="bold")
        _name_layers(grid[0], layers)
        dots = [
            grid[0, 0].scatter([], [], s=40, color=colour, marker=marker)
            for colour, marker in ((SPEECH, "o"), (TEXT, "s"))
        ]
        names = ["speech", "its transcript", "a pair"]
        link = _line("-", colour="#999999", width=0.8)
        figure.legend([*dots, link], names, loc="outside lower center", ncols=3)
        return save(figure, out)


def _scatter(axes: Axes, found: Any) -> None:
    points = np.array(found.points)
    half = len(points) // 2
    if (
        points[:half, 0].mean() > points[half:, 0].mean()
    ):  # the sign is arbitrary: put speech on the left in every panel
        points[:, 0] *= -1
    for colour, marker, side in ((SPEECH, "o", points[:half]), (TEXT, "s", points[half:])):
        axes.scatter(
            side[:, 0],
            side[:, 1],
            s=14,
            color=colour,
            marker=marker,
            alpha=0.55,
            linewidths=0,
            rasterized=True,
            zorder=3,
        )
    shown = np.linspace(0, half - 1, min(half, LINKS)).round().astype(int)
    for i in shown:
        axes.plot(*points[[i, half + i]].T, color="#999999", linewidth=0.5, alpha=0.7, zorder=2)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.08)
    axes.set_xlabel(f"{found.share[0]:.0%} and {found.share[1]:.0%} of variance", fontsize=9)


def plot_probes(probes: Sequence[Mapping[str, Any]], names: Sequence[str], out: Path) -> Path:
    """Draw the accuracy of linear probes by layer, one panel per field.

    ``probes`` are the records of ``analysis.json``, and ``names`` the names of the two stages.
    """
    columns = 2 if len(probes) == 4 else min(3, len(probes))
    lines = -(-len(probes) // columns)
    with style():
        figure = new_figure(width=3.1 * columns + 1.2, height=2.9 * lines + 0.8)
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, found in zip(grid, probes, strict=False):
            layers = [row["layer"] for row in found["layers"]]
            series = ((names[0], "before", STAGES[0]), (names[1], "after", STAGES[1]), ("", "transcript", TEXT))
            for (label, key, colour), marker in zip(series, MARKERS, strict=False):
                y = [row[key]["accuracy"] for row in found["layers"]]
                text = f"speech, {label}" if label else "transcript"
                axes.plot(layers, y, color=colour, marker=marker, markersize=5, linewidth=2, label=text, clip_on=False)
            axes.axhline(found["encoder"]["accuracy"], color=ENCODER, linewidth=2, linestyle="--", label="encoder")
            axes.axhline(found["majority"], color=INK, linewidth=1.4, linestyle=":", label="majority")
            title = f"{found['field']} ({len(found['classes'])} classes)"
            axes.set(title=title, xticks=thin_ticks(layers), ylim=(0, 100), xlabel="LLM layer")
            axes.grid(axis="y")
        for axes in grid[::columns]:
            axes.set_ylabel("accuracy (%)")
        for axes in grid[len(probes) :]:
            axes.set_visible(False)
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=5 if columns == 3 else 3)
        return save(figure, out)


@dataclass(frozen=True)
class TokenAlignment:
    """The token alignment of one utterance."""

    title: str
    tokens: list[str]
    """The N tokens of the transcript."""
    token_s: float
    """Seconds of audio per speech token."""
    plans: Mapping[str, Mapping[int, NDArray[np.float32]]]
    """Transport plans (N, M) by stage and layer, each row scaled to sum to 1."""
    words: Sequence[tuple[str, float, float]] = ()
    """Word, start and end in seconds, if the manifest has word times."""


def plot_alignment(shown: TokenAlignment, out: Path) -> Path:
    """Draw heat maps of the share of each text token's mass in the speech: one row per stage, one column per layer.

    All heat maps have the same scale. Grey lines show the starts of words if they are known.
    """
    tokens = [_printable(token) for token in shown.tokens[:TOKENS_SHOWN]]
    layers = list(next(iter(shown.plans.values())))
    with style():
        height = max(2.0, 0.19 * len(tokens) + 0.5)
        figure = new_figure(width=3.3 * len(layers) + 1.6, height=height * len(shown.plans) + 1.2)
        grid = figure.subplots(len(shown.plans), len(layers), squeeze=False, sharex=True, sharey=True)
        top = max(plan[:TOKENS_SHOWN].max() for by_layer in shown.plans.values() for plan in by_layer.values())
        for line, (name, by_layer) in zip(grid, shown.plans.items(), strict=True):
            for axes, layer in zip(line, layers, strict=True):
                plan = by_layer[layer][:TOKENS_SHOWN]
                extent = (0, plan.shape[1] * shown.token_s, len(tokens) - 0.5, -0.5)
                image = axes.imshow(
                    plan, vmin=0, vmax=top, cmap="Blues", aspect="auto", interpolation="nearest", extent=extent
                )
                for _, start_s, _ in shown.words:
                    axes.axvline(start_s, color=FAINT, linewidth=0.7)
                axes.set_yticks(range(len(tokens)), tokens, fontsize=8.5)
                axes.tick_params(length=0)
            line[0].set_ylabel(name, fontweight="bold")
        _name_layers(grid[0], layers)
        for axes in grid[-1]:
            axes.set_xlabel("time (s), with the starts of words" if shown.words else "time (s)")
        figure.suptitle(shown.title, x=0.01, ha="left", fontsize=10.5)
        bar = figure.colorbar(image, ax=grid, shrink=0.6, aspect=24, pad=0.01)
        bar.set_label("share of the token's mass")
        bar.outline.set_visible(False)
        return save(figure, out)


def _name_layers(line: Sequence[Axes], layers: Sequence[int]) -> None:
    for axes, layer in zip(line, layers, strict=True):
        axes.set_title(f"layer {layer}", pad=6)


def _printable(token: str) -> str:
    """Return the token with blanks made visible, and dollar signs escaped because they would start a formula."""
    return (token.strip() or "␣").replace("$", r"\$")


def _line(dashes: str, *, colour: str = INK, width: float = 2.0) -> Any:
    """Return a line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dashes, linewidth=width)
