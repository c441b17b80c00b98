"""A projector whose tokens follow the content: continuous integrate-and-fire (CIF).

A network gives every position of the speech a weight between 0 and 1. Weights add up along time. Whenever their sum
reaches a whole number, one token ends there: the mean of the positions since the last one, by their weights. Fast
speech thus gets as many tokens as slow speech, and in training exactly as many as the transcript has.

Source: Dong & Xu 2020 (arXiv 1905.11235). `integrate` computes their loop over positions for all tokens at once.

Shape legend: B utterances, T encoder frames, P positions of the network, M tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.models.ctc import TYPICAL_TOKENS_HZ, Block
from ossicle.precision import outside_autocast

LEFTOVER = 0.5
"""Weight after the last whole token from which it makes one more token, as in the paper of CIF."""
MIN_WEIGHT = 1e-6
RATES = 0.01, 0.99
"""Bounds of the first weights, which a sigmoid can represent."""


@outside_autocast
def integrate(states: Tensor, weights: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, M, D) of ``states`` (B, P, D), and which of them are valid (B, M).

    Position p occupies the interval [c_p - w_p, c_p], where c is the running sum of the ``weights`` (B, P), which are 0
    for padding. Token m is the mean of the states by the length that their intervals have in [m, m + 1]. An utterance
    has as many tokens as its sum of weights, rounded (`LEFTOVER`), but at least one if any weight is positive. With
    ``counts`` (B,) the weights of each utterance are scaled to that sum first.
    """
    weights = weights.float()
    total = weights.sum(1)
    if counts is None:
        counts = (total + 1 - LEFTOVER).floor().long().clamp_min(1) * (total > 0)
    else:
        weights = weights * (counts / total.clamp_min(MIN_WEIGHT))[:, None]
    ends = weights.cumsum(1)[:, None]  # (B, 1, P)
    firsts = torch.arange(int(counts.max()), device=counts.device)  # (M,) where each token begins
    valid = firsts < counts[:, None]
    before = torch.minimum(ends, firsts[:, None] + 1.0)
    shares = before - torch.maximum(ends - weights[:, None], firsts[:, None].float())  # (B, M, P)
    shares = shares.clamp_min(0) * valid[..., None]
    shares = shares / shares.sum(2, keepdim=True).clamp_min(MIN_WEIGHT)
    return shares @ states.float(), valid


class CIFProjector(nn.Module):
    """Weigh positions of neighbouring frames, integrate them to tokens, and map these to the LLM's width.

    Args:
        in_dim: Width of an encoder frame.
        out_dim: Width of the LLM's token embeddings.
        config: Sizes, a `ossicle.models.projectors.CIFConfig`.
        rate_hz: Encoder frames per second.
    """

    def __init__(self, in_dim: int, out_dim: int, config: Any, *, rate_hz: float) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        self.stack = max(1, round(config.position_s * rate_hz))
        self.frames_per_token = rate_hz / TYPICAL_TOKENS_HZ
        self.dropout, width = config.dropout, config.width
        self.norm_frames = nn.LayerNorm(in_dim)
        self.enter = nn.Linear(self.stack * in_dim, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, ffn=config.ffn, kernel=config.kernel, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.norm_weights = nn.LayerNorm(width)
        self.weight = nn.Linear(width, 1)
        first = min(max(TYPICAL_TOKENS_HZ * self.stack / rate_hz, RATES[0]), RATES[1])
        nn.init.constant_(self.weight.bias, math.log(first / (1 - first)))  # the usual number of tokens
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_dim)

    def weigh(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return states (B, P, D) of ``frames`` (B, T, in_dim) and their weights (B, P), which are 0 for padding."""
        padding = -frames.shape[1] % self.stack
        normed = F.pad(self.norm_frames(frames) * frame_mask[..., None], (0, 0, 0, padding))
        mask = torch.unflatten(F.pad(frame_mask, (0, padding)), 1, (-1, self.stack)).any(-1)  # (B, P)
        x = self.enter(torch.unflatten(normed, 1, (-1, self.stack)).flatten(2))
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, mask)
        return x, self.weight(self.norm_weights(x)).squeeze(-1).float().sigmoid() * mask

    def tokens(self, states: Tensor, weights: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, M, out_dim) of `weigh`'s result and their mask (B, M); ``counts`` as of `integrate`."""
        values, valid = integrate(states, weights, counts)
        return self.out(self.norm(values)) * valid[..., None], valid

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with their mask (B, M)."""
        return self.tokens(*self.weigh(frames, frame_mask))
