"""Draw the token alignment of one utterance: one heat map for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from ossicle_lab.analysis.drawing import new_figure
from ossicle_lab.report.figures import POINTS_PER_INCH, inline, page_style

WIDTH, ROW, MARGIN = 560, 13, 60
SHADE = (0.14, 0.52, 0.80)
"""RGB colour of the largest share. Smaller ones are more transparent, which reads on light and dark pages."""


def token_map(name: str, record: Mapping[str, Any]) -> Markup:
    """Draw the transport plans of one pretraining (`ossicle_lab.study.measure.token_plans`).

    All layers share one scale: a cell is opaque where a text token has the largest share of all.
    """
    tokens = [token.replace("$", r"\$") or "␣" for token in record["tokens"]]
    plans = {layer: np.asarray(plan, dtype=float) for layer, plan in record["plans"].items()}
    top = max(float(plan.max()) for plan in plans.values())
    with page_style():
        figure = new_figure(width=WIDTH / POINTS_PER_INCH, height=(ROW * len(tokens) + MARGIN) / POINTS_PER_INCH)
        panels = figure.subplots(1, len(plans), sharey=True, squeeze=False)[0]
        for axes, (layer, plan) in zip(panels, plans.items(), strict=True):
            shades = np.zeros((*plan.shape, 4))
            shades[..., :3], shades[..., 3] = SHADE, plan / top
            extent = (0, plan.shape[1] * record["token_s"], len(tokens) - 0.5, -0.5)
            axes.imshow(shades, aspect="auto", interpolation="none", extent=extent)
            axes.set_title(f"layer {layer}", fontweight="normal", pad=4)
            axes.set_xlabel("time (s)")
            axes.locator_params(axis="x", nbins=4)
            axes.spines[:].set_visible(True)
            axes.tick_params(length=0)
        panels[0].set_yticks(range(len(tokens)), tokens)
        layers = ", ".join(plans)
        return inline(figure, name, f"Share of each text token's mass by time, layers {layers}.")
