"""The transport plan behind a Wasserstein similarity: which token of the text is matched with which of the speech.

Shape legend: N points x, M points y, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-3
"""Greatest error of a column's sum, as a share of it."""
MOST_UPDATES = 5000
"""At each temperature; pictures of speech took fewer than a thousand in all."""


@torch.no_grad()
def transport_plan(
    x: Tensor, y: Tensor, *, blur: float = 0.05, scaling: float = 0.5, unit: bool = True, tolerance: float = TOLERANCE
) -> Tensor:
    """Entropic optimal-transport plan of one cloud ``x`` (N, D) and one ``y`` (M, D): (N, M), float64.

    The minimiser of <P, C> + blur² KL(P | 1/(N·M)) with uniform weights and cost C = |x - y|² / 2. Each row sums to
    1/N exactly, each column to 1/M within ``tolerance``. ``unit`` L2-normalises the points first, as
    `ossicle.losses.wasserstein_similarity` does. The loss stops after one averaged update at each temperature, which is
    enough for its value; its plan has columns that are off by tens of percent. Here the updates take turns, and go on
    until the columns fit. No gradient.

    Raises `ValueError` for an empty cloud and for points that are not finite, `RuntimeError` where 5000 updates at a
    temperature are not enough. Source: Cuturi 2013; annealed as in Feydy 2020, chapter 3.
    """
    if min(len(x), len(y)) == 0 or not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"a plan needs finite points on both sides, not {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = (F.normalize(points.double(), dim=1) if unit else points.double() for points in (x, y))
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
    g = cost.new_zeros(1, len(y))
    temperature = max(float(cost.max()), blur**2)
    while True:
        f, g = _settle(cost, g, temperature, tolerance)
        if temperature == blur**2:
            return ((f + g - cost) / temperature).exp() / cost.numel()
        temperature = max(temperature * scaling**2, blur**2)


def _settle(cost: Tensor, g: Tensor, temperature: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Potentials (N, 1) and (1, M) at a temperature, from ``g``: rows fit exactly, columns within ``tolerance``."""
    rows, columns = cost.shape
    for _ in range(MOST_UPDATES):
        f = temperature * (math.log(columns) - ((g - cost) / temperature).logsumexp(1, keepdim=True))
        better = temperature * (math.log(rows) - ((f - cost) / temperature).logsumexp(0, keepdim=True))
        off = ((g - better) / temperature).exp() - 1  # of the column sums of (f, g), as a share
        if off.abs().max() < tolerance:
            return f, g
        g = better
    raise RuntimeError(
        f"the transport plan of {rows} and {columns} points did not settle at temperature {temperature:.2g}: "
        "take a larger blur or tolerance"
    )
