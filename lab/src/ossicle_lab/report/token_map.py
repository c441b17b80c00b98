"""Token alignment of one utterance as inline SVG: a panel for each layer, a square for each share of a text token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ossicle_lab.report.charts import LOOKS, nice_ticks

WIDTH, LEFT, GAP, TOP, ROW, BOTTOM = 560, 74, 14, 18, 13, 30
FAINTEST = 0.02
"""Of the largest share: those below are not drawn, as they cannot be seen and are most of them."""


def token_map(name: str, look: int, record: Mapping[str, Any]) -> Markup:
    """The plans of one pretraining (`ossicle_lab.study.measure.token_plans`), darker where a token has more of its mass.

    Shade is on one scale over the layers: the darkest square is the largest share of all.
    """
    tokens: list[str] = record["tokens"]
    plans: Mapping[str, Sequence[Sequence[float]]] = record["plans"]
    width = (WIDTH - LEFT - GAP * (len(plans) - 1)) / len(plans)
    height = ROW * len(tokens)
    top = max(share for plan in plans.values() for shares in plan for share in shares)
    labels = [
        Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, TOP + ROW * (i + 0.8), token)
        for i, token in enumerate(tokens)
    ]
    panels = [
        _panel(
            layer,
            [[share / top for share in shares] for shares in plan],
            record["token_s"],
            (LEFT + i * (width + GAP), width, height),
        )
        for i, (layer, plan) in enumerate(plans.items())
    ]
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption><svg class="heat k{}" viewBox="0 0 {} {}" role="img" '
        'aria-label="{}: which speech token stands for which word">{}</svg></figure>'
    ).format(name, look % LOOKS, WIDTH, TOP + height + BOTTOM, name, Markup("").join([*labels, *panels]))


def _panel(layer: str, plan: Sequence[Sequence[float]], token_s: float, place: tuple[float, float, float]) -> Markup:
    left, width, height = place
    columns = len(plan[0])
    step = width / columns
    parts = [
        Markup('<text x="{:.1f}" y="{}">layer {}</text>').format(left, TOP - 6, layer),
        Markup('<rect class="frame" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(left, TOP, width, height),
    ]
    parts += [
        Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" opacity="{:.2f}"/>').format(
            left + step * column, TOP + ROW * row, step, ROW, share
        )
        for row, shares in enumerate(plan)
        for column, share in enumerate(shares)
        if share >= FAINTEST
    ]
    seconds = columns * token_s
    parts += [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
            left + width * tick / seconds, TOP + height + 14, tick
        )
        for tick in nice_ticks(0, seconds, 3)
        if tick <= seconds
    ]
    return Markup("").join(parts)
