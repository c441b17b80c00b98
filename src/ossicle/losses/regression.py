"""Compute the distance of speech tokens to the embeddings of their transcript, along an alignment of the two.

An alignment is a plan: the weight of each pair of a text token and a speech token. The weights of an utterance sum to
one, every text token has the share 1/N of them, and every speech token 1/M. Plans have no gradient.

Shape legend: B utterances, N text tokens, M speech tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.precision import outside_autocast

UPDATES = 50
"""Updates of each side at the last temperature. Further ones would move at most a few percent of a plan's weight."""
MIN_COST = 1e-12


@torch.no_grad()
@outside_autocast
def transport_plans(
    text: Tensor, text_mask: Tensor, speech: Tensor, speech_mask: Tensor, *, entropy: float = 0.05, order: float = 0.0
) -> Tensor:
    """Return the entropic optimal-transport plan (B, N, M) of each ``text`` (B, N, D) and its ``speech`` (B, M, D).

    Each plan P minimises <P, C> + entropy · KL(P | 1 / (N M)) with uniform marginals, where
    C[n, m] = |text_n - speech_m|² / c + order · ((n + 1/2) / N - (m + 1/2) / M)², and c is the mean squared distance of
    the pairs of the utterance. ``order`` thus prefers pairs at the same relative position.

    Masks are True where a position is valid; padding is on the right. Columns (speech) sum to 1/M exactly, rows to 1/N
    up to the convergence of `UPDATES` updates.
    Sources: Cuturi 2013, computed on logarithms; the term of order follows Su & Hua 2017 (OPW).
    """
    x, y = text.float(), speech.float()
    inside = text_mask[:, :, None] & speech_mask[:, None]  # (B, N, M)
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None] - 2 * x @ y.mT
    squares = squares.clamp_min(0).masked_fill(~inside, 0)
    cost = squares / (squares.sum((1, 2)) / inside.sum((1, 2))).clamp_min(MIN_COST)[:, None, None]
    cost = cost + order * (_places(text_mask)[:, :, None] - _places(speech_mask)[:, None]).square()
    log_rows, log_columns = (-mask.sum(1).float().log()[:, None] for mask in (text_mask, speech_mask))
    f, g = torch.zeros_like(cost[:, :, :1]), torch.zeros_like(cost[:, :1])
    # Falling temperatures: from a high one, the potentials of the next are near.
    falling = math.ceil(max(0.0, -math.log2(entropy)))
    temperatures = [max(entropy, 2.0**-step) for step in range(falling)] + [entropy] * UPDATES
    for temperature in temperatures:
        scores = (-cost / temperature).masked_fill(~inside, -torch.inf)
        f = temperature * (log_rows[..., None] - _log_sum(scores + g / temperature, 2))
        g = temperature * (log_columns[:, None] - _log_sum(scores + f / temperature, 1))
    return (scores + (f + g) / temperatures[-1]).exp()


def even_plans(text_mask: Tensor, speech_mask: Tensor) -> Tensor:
    """Return the plan (B, N, M) that gives equal shares of the utterance to all tokens, in their order.

    Text token n occupies the interval [n/N, (n+1)/N], speech token m occupies [m/M, (m+1)/M], and their weight is the
    length that both have in common. It is the only monotonic plan with uniform marginals.
    """
    (rows, row_ends), (columns, column_ends) = (_interval(mask) for mask in (text_mask, speech_mask))
    ends = torch.minimum(row_ends[:, :, None], column_ends[:, None])
    return (ends - torch.maximum(rows[:, :, None], columns[:, None])).clamp_min(0)


@outside_autocast
def regression_loss(plan: Tensor, text: Tensor, speech: Tensor, *, variance: float, cosine: float = 0.0) -> Tensor:
    """Return the distance (B,) between ``text`` (B, N, D) and ``speech`` (B, M, D) along ``plan`` (B, N, M).

    sum_nm P[n, m] (|text_n - speech_m|² / (D · variance) + cosine · (1 - cos(text_n, speech_m))), in float32.
    ``variance`` is that of the elements of a token embedding. Gradients flow to both sides, not to the plan.
    """
    x, y = text.float(), speech.float()
    squares = (plan.sum(2) * x.square().sum(-1)).sum(1) + (plan.sum(1) * y.square().sum(-1)).sum(1)
    loss = (squares - 2 * (plan * (x @ y.mT)).sum((1, 2))) / (x.shape[-1] * variance)
    if cosine:
        units = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT
        loss = loss + cosine * (plan * (1 - units)).sum((1, 2))
    return loss


def _interval(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return start and end (B, L) of each valid position of ``mask`` (B, L), as shares of its sequence; else (1, 1)."""
    ends = mask.cumsum(1) / mask.sum(1, keepdim=True)
    return F.pad(ends, (1, 0))[:, :-1], ends


def _places(mask: Tensor) -> Tensor:
    """Return the middle (B, L) of the interval of each position."""
    start, end = _interval(mask)
    return (start + end) / 2


def _log_sum(scores: Tensor, dim: int) -> Tensor:
    """Return the logarithm of the sum of exponentials over ``dim``, which is kept; 0 where all are minus infinity."""
    total = scores.logsumexp(dim, keepdim=True)
    return total.masked_fill(total.isneginf(), 0.0)
