"""A projector whose tokens follow the content: continuous integrate-and-fire (CIF).

A network gives every position of the speech a weight between 0 and 1. Weights add up along time. Whenever their sum
reaches a whole number, one token ends there: the mean of the positions since the last one, by their weights. Fast
speech thus gets as many tokens as slow speech, and in training exactly as many as the transcript has.

Source: Dong & Xu 2020 (arXiv 1905.11235). `integrate` computes their loop over positions for all tokens at once.

Shape legend: B utterances, T encoder frames, P positions of the network, M tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ossicle.models.blocks import TYPICAL_TOKENS_HZ, BlocksConfig, build_blocks
from ossicle.models.dropout import dropout
from ossicle.models.projectors import LONGEST_S, join_frames, whole_frames
from ossicle.precision import outside_autocast
from ossicle.section import section

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
        config: Sizes, a `CIFConfig`.
        stack: Number of neighbouring frames that are joined to a position.
        rate_hz: Encoder frames per second.
    """

    def __init__(self, in_dim: int, out_dim: int, config: Any, *, stack: int, rate_hz: float) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.stack = in_dim, out_dim, stack
        self.frames_per_token = rate_hz / TYPICAL_TOKENS_HZ
        self.dropout, width = config.dropout, config.width
        self.norm_frames = nn.LayerNorm(in_dim)
        self.enter = nn.Linear(self.stack * in_dim, width)
        self.blocks = build_blocks(config)
        self.norm_weights = nn.LayerNorm(width)
        self.weight = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_dim)

    def weigh(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return states (B, P, D) of ``frames`` (B, T, in_dim) and their weights (B, P), which are 0 for padding."""
        joined, mask = join_frames(self.norm_frames(frames), frame_mask, self.stack)
        x = self.enter(joined)
        x = dropout(x, self.dropout, self.training)
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


@section
class CIFConfig(BlocksConfig):
    """A network that ends a token where the content does, by continuous integrate-and-fire (not in the paper).

    The number of tokens follows what is said, not the time. The objective ``cif`` trains it.
    """

    name: Literal["cif"] = "cif"
    layers: int = Field(default=2, ge=0, le=256)
    """Number of layers before the weights of the positions."""
    position_s: float = Field(default=0.04, gt=0, le=LONGEST_S)
    """Seconds of speech per position, rounded to whole frames. A position ends one token at most, save in training."""

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
        """Return a `CIFProjector` whose weights give about as many tokens as are usually spoken."""
        stack = whole_frames(self.position_s, frame_rate_hz)
        projector = CIFProjector(in_dim, out_dim, self, stack=stack, rate_hz=frame_rate_hz)
        first = min(max(TYPICAL_TOKENS_HZ * stack / frame_rate_hz, RATES[0]), RATES[1])
        nn.init.constant_(projector.weight.bias, math.log(first / (1 - first)))
        return projector
