"""How two sets of paired vectors lie to each other: modality gap, CKA, principal components. Pure functions.

Shapes: N pairs, D and E widths; row i of both sides belongs to the same utterance. All is computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LEAST_FOR_CKA = 4
"""Utterances that the unbiased estimate divides by the number of quadruples of."""


class Components(NamedTuple):
    """Points on their leading principal components."""

    points: Tensor  # (N, K) float64
    share: list[float]
    """Of the variance, that each component explains, 0..1."""


def modality_gap(speech: Tensor, text: Tensor) -> float:
    """Distance of the centroids of unit-length ``speech`` (N, D) and ``text`` (M, D) over their spread.

    |mean s - mean t| / sqrt((mean |s - mean s|² + mean |t - mean t|²) / 2): 0 where the two sides share their centre;
    from about 1 on, they lie farther from each other than from themselves. Infinite where both sides have collapsed to
    two different points, 0 where to one. Source: Liang et al. 2022 (numerator); the scale is ours, to compare layers.
    """
    sides = [functional.normalize(side.double(), dim=1) for side in (speech, text)]
    centres = [side.mean(0) for side in sides]
    distance = (centres[0] - centres[1]).norm()
    spread = sum((side - centre).square().sum(1).mean() for side, centre in zip(sides, centres, strict=True)) / 2
    return 0.0 if distance == 0 else float(distance / torch.as_tensor(spread).sqrt())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of ``x`` (N, D) and ``y`` (N, E), by unbiased estimates of HSIC: 1 at best, about 0 for unrelated.

    HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)). It asks whether the same utterances are neighbours on both sides, and is
    blind to rotation, scale and shift. The usual, biased estimate is near 1 for any two sets of vectors that are wider
    than N; this one can come out below 0. Raises `ValueError` for fewer than 4 pairs; NaN where the points of a
    side are all equally far from each other.
    Source: Kornblith et al. 2019, section 3; the estimate is that of Song et al. 2012, as in Nguyen et al. 2021.
    """
    if len(x) != len(y) or len(x) < LEAST_FOR_CKA:
        raise ValueError(
            f"CKA needs as many vectors on both sides, at least {LEAST_FOR_CKA}, not {len(x)} and {len(y)}"
        )
    grams = [_gram_without_diagonal(side) for side in (x, y)]
    across, *own = (_hsic(*grams), *(_hsic(gram, gram) for gram in grams))
    return float(across / (own[0] * own[1]).sqrt()) if min(own) > 0 else float("nan")


def principal_components(points: Tensor, count: int = 2) -> Components:
    """``points`` (N, D) on their ``count`` leading principal components, through the Gram matrix: exact for any D.

    The sign of a component, which is arbitrary, is such that the largest coordinate is positive. Raises `ValueError`
    where N or D is below ``count``.
    """
    if min(points.shape) < count:
        raise ValueError(f"{count} principal components need as many points and dimensions, not {tuple(points.shape)}")
    centred = points.double() - points.double().mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)  # ascending
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    total = values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Components(vectors * largest.sign() * values[:count].sqrt(), (values[:count] / total).tolist())


def _gram_without_diagonal(x: Tensor) -> Tensor:
    """Inner products (N, N) of centred rows, the diagonal zero. Centring changes nothing but the rounding."""
    centred = x.double() - x.double().mean(0)
    gram = centred @ centred.T
    return gram.fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased estimate of HSIC from Gram matrices (N, N) without diagonal."""
    n = len(k)
    mixed = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return ((k * m).sum() + mixed) / (n * (n - 3))
