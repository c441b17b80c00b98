"""How pictures look: one style, figures without pyplot, so that no global state is left behind.

matplotlib (the ``lab`` or ``analysis`` extra) is imported on the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
INK, FAINT = "#222222", "#d9d9d9"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours without yellow: told apart with any colour vision, and on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def thin(ticks: Sequence[int], most: int = 9) -> list[int]:
    """Every n-th tick, so that at most ``most`` are left and numbers do not touch."""
    return list(ticks)[:: -(-len(ticks) // most)]


def style() -> Any:
    """The context to draw in. Raises `RuntimeError` without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("pictures need matplotlib: pip install 'ossicle[analysis]'") from error
    return matplotlib.rc_context(_STYLE)


def new_figure(*, width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts keep clear of each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, out: Path) -> Path:
    """Write ``out``, whose suffix is the format; returns it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return out
