"""Small line charts as inline SVG. Colours and fonts come from the page's style, so they follow its light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 10, 38
MOST_POINTS = 150
"""A curve with more is thinned: the page would grow for what no screen shows."""
LOOKS = 10
"""Colours that the style has; further lines begin again."""
MARKERS = (
    "M-3.2,0a3.2,3.2 0 1,0 6.4,0a3.2,3.2 0 1,0 -6.4,0",
    "M-3,-3h6v6h-6z",
    "M0,-4L4,0L0,4L-4,0z",
    "M0,-3.8L3.8,3L-3.8,3z",
    "M0,3.8L3.8,-3L-3.8,-3z",
)


@dataclass(frozen=True)
class Point:
    """A value, with the ends of its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A named curve; ``look`` numbers its colour and marker, the same in every chart of a page."""

    name: str
    look: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Axes:
    """What a chart is about."""

    title: str
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    """Position and text; positions are in the unit of x."""
    y_range: tuple[float, float] | None = None
    """None: from 0, or from the lowest value if that is below, to the highest."""
    markers: bool = True
    note: str = ""
    """Beside the title, e.g. that lower is better."""
    dodge: float = 0.0
    """Units between lines at the same x, so that their intervals can be told apart."""


def marker_path(look: int) -> str:
    """The shape that stands for a line, around (0, 0)."""
    return MARKERS[look % len(MARKERS)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` of the points, evenly, the last one included."""
    step = max(1, math.ceil(len(points) / most))
    kept = list(points[::step])
    return kept if not points or kept[-1] is points[-1] else [*kept, points[-1]]


def chart(lines: Sequence[Line], axes: Axes) -> Markup:
    """One chart as a figure, with a title for those who cannot see it. Raises `ValueError` where nothing is drawn."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        raise ValueError(f"chart '{axes.title}' has no points")
    scale = _Scale.of(drawn, axes)
    parts = [*_grid(scale, axes), *(_curve(line, scale, axes, shift) for line, shift in _dodged(drawn, axes))]
    described = f"{axes.title}: {', '.join(line.name for line in drawn)}"
    note = Markup(" <span>{}</span>").format(axes.note) if axes.note else ""
    return Markup(
        '<figure class="chart"><figcaption>{}{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(axes.title, note, WIDTH, HEIGHT, described, Markup("").join(parts))


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` steps apart; both ends lie inside or on the outermost."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    ticks: list[float]
    inset: float
    """Units left free at both ends, for lines that are shifted to the side."""

    @classmethod
    def of(cls, lines: Sequence[Line], axes: Axes) -> _Scale:
        points = [point for line in lines for point in line.points]
        xs = [*(point.x for point in points), *(x for x, _ in axes.x_ticks)]
        ys = [y for p in points for y in (p.y, p.low, p.high) if y is not None and math.isfinite(y)]
        low, high = axes.y_range or (min(0.0, *ys, 0.0), max(*ys, 0.0))
        ticks = nice_ticks(low, high if high > low else low + 1)
        x_low, x_high = min(xs), max(xs)
        inset = axes.dodge * len(lines) / 2
        return cls(x_low, x_high if x_high > x_low else x_low + 1, ticks, inset)

    def x(self, value: float) -> float:
        left, right = LEFT + self.inset, WIDTH - RIGHT - self.inset
        return left + (right - left) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        inside = min(max(value, low), high)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (inside - low) / (high - low)


def _grid(scale: _Scale, axes: Axes) -> list[Markup]:
    parts = []
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        )
        parts.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(LEFT - 6, y + 4, tick))
    for position, text in axes.x_ticks:
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                scale.x(position), HEIGHT - BOTTOM + 16, text
            )
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            middle, HEIGHT - 4, axes.x_label
        )
    )
    return parts


def _dodged(lines: Sequence[Line], axes: Axes) -> list[tuple[Line, float]]:
    """Each line with its shift to the side: symmetric around 0."""
    return [(line, axes.dodge * (i - (len(lines) - 1) / 2)) for i, line in enumerate(lines)]


def _curve(line: Line, scale: _Scale, axes: Axes, shift: float) -> Markup:
    """The line, its intervals and markers, each with its numbers as a tooltip."""
    places = [(point, scale.x(point.x) + shift, scale.y(point.y)) for point in line.points if math.isfinite(point.y)]
    path = " ".join(f"{'L' if i else 'M'}{x:.1f},{y:.1f}" for i, (_, x, y) in enumerate(places))
    parts = [Markup('<path class="curve" d="{}"/>').format(path)]
    for point, x, y in places if axes.markers else ():
        if point.low is not None and point.high is not None:
            bar = f"M{x:.1f},{scale.y(point.low):.1f}V{scale.y(point.high):.1f}"
            parts.append(Markup('<path class="bar" d="{}"/>').format(bar))
        told = f"{line.name}: {point.y:.1f}" + ("" if point.low is None else f" ({point.low:.1f} to {point.high:.1f})")
        parts.append(
            Markup('<path class="mark" transform="translate({:.1f},{:.1f})" d="{}"><title>{}</title></path>').format(
                x, y, marker_path(line.look), told
            )
        )
    return Markup('<g class="line k{}" data-name="{}">{}</g>').format(
        line.look % LOOKS, escape(line.name), Markup("").join(parts)
    )
