"""Estimate how much two copies of a model differ, from a short sketch of each.

Published weights come in several copies: in another precision, or quantised and dequantised. Their fingerprints differ,
but a projector that was trained with one copy often works with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

ALIKE = 0.15
"""Largest relative difference of weights at which two copies count as the same model. Four-bit weights differ from the
original by about 0.1."""
LEAST = 2**14
"""Smallest matrix that takes part. Norms and biases are left out."""
MOST = 64
"""Most matrices that take part, evenly spaced among all."""
PROBES = 4


@torch.no_grad()
def sketch(model: nn.Module) -> list[float]:
    """Return a few random projections of the large weight matrices of ``model``.

    Each value is u' W v / ||u|| ||v|| for random signs u and v. The squared distance of the values of two models is on
    average proportional to that of their weights. The order of matrices is that of the modules, not of names.
    """
    matrices = {
        p.data_ptr(): p for p in model.parameters() if p.dim() == 2 and p.is_floating_point() and p.numel() >= LEAST
    }
    chosen = list(matrices.values())
    values = []
    for index in np.linspace(0, len(chosen) - 1, min(MOST, len(chosen))).astype(int).tolist():
        matrix = chosen[index].detach().float()
        random = np.random.default_rng([index, *matrix.shape])
        for _ in range(PROBES):
            left, right = (torch.from_numpy(random.choice([-1.0, 1.0], size)).to(matrix) for size in matrix.shape)
            scale = float(matrix.norm()) or 1.0
            values.append(float(left @ matrix @ right) / scale)
    return [round(value, 5) for value in values]


def difference(sketches: Sequence[Sequence[float]]) -> float:
    """Estimate the relative difference ||W - W'|| / ||W|| of the weights of two models from their ``sketches``.

    Sketches of different lengths belong to models of different shapes: the difference is infinite.
    """
    one, two = (np.asarray(values, dtype=float) for values in sketches)
    if one.shape != two.shape or not one.size:
        return float("inf")
    return float(np.linalg.norm(one - two)) / max(float(np.linalg.norm(one)), 1e-12)


def alike(known: Any, model: nn.Module) -> float | None:
    """Return the difference of ``model`` to the ``known`` sketch if they are copies of one model, else None."""
    if not isinstance(known, list) or not all(isinstance(value, int | float) for value in known):
        return None
    found = difference([known, sketch(model)])
    return found if found <= ALIKE else None
