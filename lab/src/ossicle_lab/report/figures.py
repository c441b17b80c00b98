"""Draw the report's charts with matplotlib and return them as SVG that takes its colours from the page.

A chart is drawn in placeholder colours, which become CSS variables. It therefore follows the page's light or dark
colours, and its text stays text.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from ossicle_lab.analysis.drawing import MARKERS, new_figure, separate_labels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 10
"""Number of line colours in ``style.css``; further lines repeat them."""
GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚✖", strict=True))
"""Characters that show the markers in the page's legend."""
MAX_POINTS = 150
POINTS_PER_INCH = 72
SMALL, WIDE = (360, 236), (720, 380)
"""Sizes of charts in points, width and height: a column of the page, and its whole width."""
_INK, _FAINT = "#010203", "#010204"
_VARIABLES = {
    _INK: "var(--soft)",
    _FAINT: "var(--rule)",
    **{f"#0102{16 + k:02x}": f"var(--k{k})" for k in range(COLOURS)},
}
_LABEL_GAP = 0.062


@dataclass(frozen=True)
class Point:
    """A value and, where it was measured, its confidence interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A named curve. ``look`` selects its colour and marker, the same in every chart of a page."""

    name: str
    look: int
    points: Sequence[Point]


@dataclass(frozen=True)
class ChartStyle:
    """The title, axes and size of a line chart."""

    title: str
    x_label: str
    x_ticks: Sequence[tuple[float, str]] | None = None
    """Position and text of each tick. Default: round numbers."""
    y_range: tuple[float, float] | None = None
    """Default: from 0, or from the lowest value if that is below 0, to the highest value."""
    y_label: str = ""
    markers: bool = True
    note: str = ""
    """Text beside the title, e.g. that lower is better."""
    dodge: float = 0.0
    """Distance between lines at the same x, as a share of the axis, so that their intervals do not overlap."""
    size: tuple[int, int] = SMALL
    """Width and height in points."""
    label_lines: bool = False
    """Write the name of each line at its right end."""


def glyph(look: int) -> str:
    """Return the character that shows a line's marker in the page's legend."""
    return GLYPHS[MARKERS[look % len(MARKERS)]]


def thin_points(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Return about ``most`` evenly spaced points, always with the last one."""
    step = max(1, math.ceil(len(points) / most))
    kept = list(points[::step])
    return kept if not points or kept[-1] is points[-1] else [*kept, points[-1]]


def line_chart(lines: Sequence[Line], chart: ChartStyle) -> Markup:
    """Draw a line chart and return it as a ``<figure>``. Raises `ValueError` if no line has a point."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        raise ValueError(f"chart '{chart.title}' has no points")
    with page_style():
        figure = new_figure(width=chart.size[0] / POINTS_PER_INCH, height=chart.size[1] / POINTS_PER_INCH)
        axes = figure.subplots()
        span = _x_span(drawn, chart)
        for rank, line in enumerate(drawn):
            _draw(axes, line, chart, shift=chart.dodge * span * (rank - (len(drawn) - 1) / 2))
        _limit(axes, drawn, chart)
        if chart.label_lines:
            _label(axes, drawn)
        description = "Lines: " + ", ".join(line.name for line in drawn) + "."
        return inline(figure, chart.title, description, note=chart.note)


def page_style() -> AbstractContextManager[None]:
    """Return the drawing style with the placeholders of the page's colours."""
    return style(ink=_INK, faint=_FAINT, edge=_FAINT)


def colour(look: int) -> str:
    """Return the placeholder of a line's colour."""
    return f"#0102{16 + look % COLOURS:02x}"


def inline(figure: Figure, title: str, description: str, *, note: str = "") -> Markup:
    """Return ``figure`` as a ``<figure>`` with inline SVG, a caption, and ``description`` for screen readers.

    Elements with a gid ``look-K`` get the class ``line kK``.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="look-(\d+)"', r'class="line k\1"', svg)
    svg = re.sub(r' id="[a-z]+[a-z0-9]*_\d+"', "", svg)
    digest = hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|"#|url\(#)', rf"\g<1>f{digest}-", svg)  # unique among the charts of a page
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    opening = f'<svg {view[0]} role="img" aria-label="{escape(title)}. {escape(description)}">'
    svg = re.sub(r"<svg.*?>", lambda _: opening, svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*|\n\s*", " ", svg, flags=re.DOTALL)
    beside = Markup(" <span>{}</span>").format(note) if note else ""
    return Markup('<figure class="chart"><figcaption>{}{}</figcaption>{}</figure>').format(title, beside, Markup(svg))


def _draw(axes: Axes, line: Line, chart: ChartStyle, *, shift: float) -> None:
    shade, gid = colour(line.look), f"look-{line.look % COLOURS}"
    x, y = [point.x + shift for point in line.points], [point.y for point in line.points]
    marker = MARKERS[line.look % len(MARKERS)] if chart.markers else None
    axes.plot(x, y, color=shade, marker=marker, markersize=5, linewidth=1.7, clip_on=False, gid=gid, zorder=3)
    bars = [(at, p.low, p.high) for at, p in zip(x, line.points, strict=True) if p.low is not None]
    if bars:
        at, low, high = zip(*bars, strict=True)
        axes.vlines(at, low, high, color=shade, linewidth=1.1, alpha=0.55, clip_on=True, gid=gid)


def _x_span(lines: Sequence[Line], chart: ChartStyle) -> float:
    x = [point.x for line in lines for point in line.points] + [at for at, _ in chart.x_ticks or ()]
    return max(x) - min(x) or 1.0


def _limit(axes: Axes, lines: Sequence[Line], chart: ChartStyle) -> None:
    ys = [y for line in lines for p in line.points for y in (p.y, p.low, p.high) if y is not None and math.isfinite(y)]
    low, high = chart.y_range or (min(0.0, *ys, 0.0), max(*ys, 0.0))
    high = high if high > low else low + 1
    axes.set_ylim(low, high)
    axes.locator_params(axis="y", nbins=5)
    if chart.y_range is None:
        ticks = axes.get_yticks()
        axes.set_ylim(min(low, max((t for t in ticks if t <= low), default=low)), min(t for t in ticks if t >= high))
    if chart.x_ticks is not None:
        axes.set_xticks([at for at, _ in chart.x_ticks], [text for _, text in chart.x_ticks])
    else:
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlim(left=0)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, pad=5)


def _label(axes: Axes, lines: Sequence[Line]) -> None:
    """Write the lines' names to the right of the axes, at the height of their last points where there is room."""
    low, high = axes.get_ylim()
    ordered = sorted(lines, key=lambda line: line.points[-1].y)
    heights = separate_labels([line.points[-1].y - low for line in ordered], gap=_LABEL_GAP * (high - low))
    over = max(0.0, heights[-1] - 1.02 * (high - low))
    for line, height in zip(ordered, heights, strict=True):
        axes.annotate(
            line.name,
            xy=(1.0, (height - over) / (high - low)),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            color=colour(line.look),
            verticalalignment="center",
            annotation_clip=False,
            gid=f"look-{line.look % COLOURS}",
        )
