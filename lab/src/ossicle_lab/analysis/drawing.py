"""Define the look of all figures: fonts, colours and markers, for the images of an analysis and for the report's page.

Figures are made without pyplot, which would keep global state. matplotlib is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
INK, FAINT, EDGE = "#222222", "#d9d9d9", "#888888"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours without yellow: distinguishable with any colour vision, and on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def style(*, ink: str = INK, faint: str = FAINT, edge: str = EDGE) -> AbstractContextManager[None]:
    """Return the context in which a figure is drawn.

    Args:
        ink: colour of text and ticks.
        faint: colour of the grid.
        edge: colour of the axes' lines.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError("figures need matplotlib: pip install 'ossicle[analysis]'") from error
    inks = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), ink)
    return matplotlib.rc_context({**_STYLE, **inks, "axes.edgecolor": edge, "grid.color": faint})


def new_figure(*, width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, whose parts do not overlap."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, out: Path) -> Path:
    """Write the figure to ``out``, whose suffix decides the format, and return ``out``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return out


def thin_ticks(ticks: Sequence[int], most: int = 9) -> list[int]:
    """Return every n-th tick, at most ``most`` of them, so that their labels do not overlap."""
    return list(ticks)[:: -(-len(ticks) // most)]


def separate_labels(values: Sequence[float], gap: float) -> list[float]:
    """Return heights for labels of the ascending ``values``, at least ``gap`` apart and not below 0.

    Labels that would overlap form a cluster around the mean of their values.
    """
    clusters: list[list[float]] = []
    for value in values:
        clusters.append([value])
        while len(clusters) > 1 and _top(clusters[-2], gap) + gap > _bottom(clusters[-1], gap):
            last = clusters.pop()
            clusters[-1] += last
    return [_bottom(cluster, gap) + gap * rank for cluster in clusters for rank in range(len(cluster))]


def _bottom(cluster: Sequence[float], gap: float) -> float:
    """Return the height of a cluster's lowest label."""
    return max(sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2, 0)


def _top(cluster: Sequence[float], gap: float) -> float:
    return _bottom(cluster, gap) + gap * (len(cluster) - 1)
