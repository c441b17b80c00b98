"""Compare the geometry of two sets of paired vectors: modality gap and CKA.

Both are pure functions and compute in float64.

Shape legend: N pairs, D and E widths. Row i of both sides belongs to the same utterance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MIN_PAIRS_FOR_CKA = 4
"""Minimum number of pairs: the unbiased estimate divides by N - 3."""


def modality_gap(speech: Tensor, text: Tensor) -> float:
    """Return the distance between the centroids of ``speech`` (N, D) and ``text`` (M, D), relative to their spread.

    With L2-normalised vectors, it is |mean s - mean t| / sqrt((mean |s - mean s|² + mean |t - mean t|²) / 2).
    It is 0 if the centroids are equal. Above about 1, the sides are farther from each other than they are wide. It is
    infinite if both sides have collapsed to two different points, and 0 if to the same point.
    Source: Liang et al. 2022 for the numerator; the denominator is added here to make layers comparable.
    """
    sides = [functional.normalize(side.double(), dim=1) for side in (speech, text)]
    centres = [side.mean(0) for side in sides]
    distance = (centres[0] - centres[1]).norm()
    spread = sum((side - centre).square().sum(1).mean() for side, centre in zip(sides, centres, strict=True)) / 2
    return 0.0 if distance == 0 else float(distance / torch.as_tensor(spread).sqrt())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of ``x`` (N, D) and ``y`` (N, E): at most 1, about 0 for unrelated vectors.

    CKA is HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)). It is high if the same utterances are neighbours on both sides, and
    invariant to rotation, scale and shift. HSIC is estimated without bias, so that the value can be negative. The usual
    biased estimate is near 1 for any two sets of vectors with more dimensions than N.

    Returns NaN if all points of a side are equally far from each other. Raises `ValueError` for fewer than 4 pairs.
    Source: Kornblith et al. 2019, section 3; estimate of Song et al. 2012, as in Nguyen et al. 2021.
    """
    if len(x) != len(y) or len(x) < MIN_PAIRS_FOR_CKA:
        raise ValueError(
            f"CKA needs the same number of vectors on both sides, at least {MIN_PAIRS_FOR_CKA}, "
            f"not {len(x)} and {len(y)}"
        )
    grams = [_gram_without_diagonal(side) for side in (x, y)]
    across, *own = (_hsic(*grams), *(_hsic(gram, gram) for gram in grams))
    return float(across / (own[0] * own[1]).sqrt()) if min(own) > 0 else float("nan")


def _gram_without_diagonal(x: Tensor) -> Tensor:
    """Return the inner products (N, N) of centred rows, with a zero diagonal. Centring only reduces rounding errors."""
    centred = x.double() - x.double().mean(0)
    gram = centred @ centred.T
    return gram.fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Return the unbiased estimate of HSIC, given Gram matrices (N, N) with a zero diagonal."""
    n = len(k)
    mixed = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return ((k * m).sum() + mixed) / (n * (n - 3))
