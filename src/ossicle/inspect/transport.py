"""Compute the transport plan behind a Wasserstein similarity, which matches text tokens with speech tokens.

Shape legend: N points x, M points y, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.errors import DataError

TOLERANCE = 1e-3
"""Maximum relative error of a column sum."""
MAX_UPDATES = 5000
"""Maximum number of updates at each temperature. Plans of recorded speech took fewer than a thousand in total."""


@torch.no_grad()
def transport_plan(
    x: Tensor, y: Tensor, *, blur: float = 0.05, scaling: float = 0.5, unit: bool = True, tolerance: float = TOLERANCE
) -> Tensor:
    """Return the entropic optimal-transport plan (N, M) of points ``x`` (N, D) and ``y`` (M, D), in float64.

    The plan minimises <P, C> + blur² KL(P | 1/(N·M)) with uniform weights and cost C = |x - y|² / 2. Each row sums to
    1/N exactly, and each column to 1/M within ``tolerance``. ``unit`` L2-normalises the points first, as
    `ossicle.losses.sinkhorn.wasserstein_similarity` does. No gradient flows.

    The loss stops after one averaged update at each temperature. That is enough for its value, but the column sums of
    its plan are off by tens of percent. This function alternates the updates until the columns fit.

    Raises `DataError` for an empty cloud, for points that are not finite, and if `MAX_UPDATES` are not enough.
    Source: Cuturi 2013; annealed as in Feydy 2020, chapter 3.
    """
    if min(len(x), len(y)) == 0 or not (x.isfinite().all() and y.isfinite().all()):
        raise DataError(
            f"a transport plan needs finite points on both sides, not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = (F.normalize(points.double(), dim=1) if unit else points.double() for points in (x, y))
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
    g = cost.new_zeros(1, len(y))
    temperature = max(float(cost.max()), blur**2)
    while True:
        f, g = _converge(cost, g, temperature, tolerance)
        if temperature == blur**2:
            return ((f + g - cost) / temperature).exp() / cost.numel()
        temperature = max(temperature * scaling**2, blur**2)


def _converge(cost: Tensor, g: Tensor, temperature: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the potentials (N, 1) and (1, M) at ``temperature``, starting from ``g`` (1, M)."""
    rows, columns = cost.shape
    for _ in range(MAX_UPDATES):
        f = temperature * (math.log(columns) - ((g - cost) / temperature).logsumexp(1, keepdim=True))
        better = temperature * (math.log(rows) - ((f - cost) / temperature).logsumexp(0, keepdim=True))
        off = ((g - better) / temperature).exp() - 1  # relative error of the column sums
        if off.abs().max() < tolerance:
            return f, g
        g = better
    raise DataError(
        f"the transport plan of {rows} and {columns} points did not converge at temperature {temperature:.2g}: "
        "use a larger blur or tolerance"
    )
