"""Find the principal components of a set of points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Components(NamedTuple):
    """Coordinates of points on their leading principal components."""

    points: Tensor  # (N, K) float64
    share: list[float]
    """Fraction of the variance that each component explains, 0..1."""


def principal_components(points: Tensor, count: int = 2) -> Components:
    """Return ``points`` (N, D) on their ``count`` leading principal components.

    The Gram matrix gives them exactly for any D. The sign of each component is chosen so that its largest coordinate is
    positive. Raises `ValueError` if N or D is smaller than ``count``.
    """
    if min(points.shape) < count:
        raise ValueError(f"{count} principal components need as many points and dimensions, not {tuple(points.shape)}")
    centred = points.double() - points.double().mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)  # ascending
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    total = values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Components(vectors * largest.sign() * values[:count].sqrt(), (values[:count] / total).tolist())
