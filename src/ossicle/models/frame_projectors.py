"""Projectors that keep the order of frames: linear, frame stacking with an MLP, strided convolutions.

Every token of theirs is one vector per ``frames_per_token`` neighbouring frames; one with at least one valid frame is
valid.

Shape legend: B utterances, T encoder frames, M = ceil(T / frames_per_token) speech tokens, D width inside.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ossicle.section import section


@torch.no_grad()
def match_output(out: nn.Linear, rms: float, mean: Tensor | None = None) -> None:
    """Let ``out`` start like the LLM's token embeddings: with their root mean square ``rms`` and ``mean`` (D_out,).

    Its input must have unit variance, as a layer norm leaves it: the weights' scale then decides the spread. Token
    embeddings often share a large common vector, which the projector would otherwise have to learn first.
    """
    common = 0.0 if mean is None else float(mean.square().mean())
    nn.init.normal_(out.weight, std=max(rms**2 - common, 0.0) ** 0.5 / out.in_features**0.5)
    nn.init.zeros_(out.bias)
    if mean is not None:
        out.bias.copy_(mean)


class StackProjector(nn.Module):
    """Join neighbouring frames and send them through one linear layer, or through two with a GELU between them.

    Frames are normed one by one, so that each counts the same; ``width`` None is the single layer.
    """

    def __init__(self, in_dim: int, out_dim: int, *, stack: int, width: int | None = None) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.frames_per_token = in_dim, out_dim, stack
        self.norm_frames = nn.LayerNorm(in_dim)
        joined = stack * in_dim
        self.hidden = (
            nn.Identity() if width is None else nn.Sequential(nn.Linear(joined, width), nn.GELU(), nn.LayerNorm(width))
        )
        self.out = nn.Linear(joined if width is None else width, out_dim)

    def num_tokens(self, num_frames: int) -> int:
        """How many speech tokens ``num_frames`` frames become."""
        return -(-num_frames // self.frames_per_token)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with theirs (B, M)."""
        stack = self.frames_per_token
        padding = -frames.shape[1] % stack
        normed = F.pad(self.norm_frames(frames) * frame_mask[..., None], (0, 0, 0, padding))
        joined = normed.unflatten(1, (-1, stack)).flatten(2)  # (B, M, stack * in_dim)
        mask = F.pad(frame_mask, (0, padding)).unflatten(1, (-1, stack)).any(-1)  # (B, M)
        return self.out(self.hidden(joined)) * mask[..., None], mask


class ConvProjector(nn.Module):
    """Convolutions of stride 2, so many as halve the frame rate to the tokens', then a linear layer.

    What a convolution reads beyond the end of an utterance is zero, in any batch.
    """

    def __init__(self, in_dim: int, out_dim: int, *, halvings: int, width: int, kernel: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.frames_per_token = in_dim, out_dim, 2**halvings
        self.norm_frames = nn.LayerNorm(in_dim)
        self.enter = nn.Linear(in_dim, width)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, stride=2, padding=(kernel - 1) // 2) for _ in range(halvings)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(halvings))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_dim)

    def num_tokens(self, num_frames: int) -> int:
        """How many speech tokens ``num_frames`` frames become."""
        return -(-num_frames // self.frames_per_token)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with theirs (B, M)."""
        values, mask = self.enter(self.norm_frames(frames)), frame_mask
        for conv, norm in zip(self.convs, self.norms, strict=True):
            values = norm(values) * mask[..., None]
            values = F.gelu(conv(values.transpose(1, 2)).transpose(1, 2))  # (B, ceil(T / 2), D)
            mask = mask[:, ::2]
        return self.out(self.norm(values)) * mask[..., None], mask


@section
class LinearConfig:
    """Neighbouring frames joined, and one linear layer: the least that can work."""

    name: Literal["linear"] = "linear"
    token_s: float = Field(default=0.08, gt=0)
    """Seconds of speech in a token; rounded to whole frames."""
    match_embedding_rms: bool = True
    """Start the output with the scale and the mean of the LLM's token embeddings; else as PyTorch does."""

    def build(
        self,
        in_dim: int,
        out_dim: int,
        *,
        frame_rate_hz: float,
        embedding_rms: float,
        embedding_mean: Tensor | None = None,
    ) -> StackProjector:
        """Make the projector between an encoder of width ``in_dim`` and an LLM of width ``out_dim``."""
        projector = StackProjector(in_dim, out_dim, stack=max(1, round(self.token_s * frame_rate_hz)))
        if self.match_embedding_rms:
            match_output(projector.out, embedding_rms, embedding_mean)
        return projector


@section
class MLPConfig:
    """Neighbouring frames joined, and two linear layers with a GELU between them."""

    name: Literal["mlp"] = "mlp"
    token_s: float = Field(default=0.08, gt=0)
    """Seconds of speech in a token; rounded to whole frames."""
    width: int = Field(default=2048, ge=1)
    match_embedding_rms: bool = True
    """Start the output with the scale and the mean of the LLM's token embeddings; else as PyTorch does."""

    def build(
        self,
        in_dim: int,
        out_dim: int,
        *,
        frame_rate_hz: float,
        embedding_rms: float,
        embedding_mean: Tensor | None = None,
    ) -> StackProjector:
        """Make the projector between an encoder of width ``in_dim`` and an LLM of width ``out_dim``."""
        stack = max(1, round(self.token_s * frame_rate_hz))
        projector = StackProjector(in_dim, out_dim, stack=stack, width=self.width)
        if self.match_embedding_rms:
            match_output(projector.out, embedding_rms, embedding_mean)
        return projector


@section
class ConvConfig:
    """Convolutions of stride 2 and a linear layer."""

    name: Literal["conv"] = "conv"
    token_s: float = Field(default=0.08, gt=0)
    """Seconds of speech in a token; rounded to a power of two of frames."""
    width: int = Field(default=1024, ge=1)
    kernel: int = Field(default=3, ge=1)
    """Frames that a convolution reads; odd."""
    match_embedding_rms: bool = True
    """Start the output with the scale and the mean of the LLM's token embeddings; else as PyTorch does."""

    def build(
        self,
        in_dim: int,
        out_dim: int,
        *,
        frame_rate_hz: float,
        embedding_rms: float,
        embedding_mean: Tensor | None = None,
    ) -> ConvProjector:
        """Make the projector between an encoder of width ``in_dim`` and an LLM of width ``out_dim``."""
        if self.kernel % 2 == 0:
            raise ValueError(f"model.projector.kernel={self.kernel}: a convolution reads an odd number of frames")
        halvings = max(0, round(math.log2(max(1.0, self.token_s * frame_rate_hz))))
        projector = ConvProjector(in_dim, out_dim, halvings=halvings, width=self.width, kernel=self.kernel)
        if self.match_embedding_rms:
            match_output(projector.out, embedding_rms, embedding_mean)
        return projector
