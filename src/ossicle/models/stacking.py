"""Simple projectors: neighbouring frames joined, or convolutions, and linear layers.

Shape legend: B utterances, T encoder frames, M speech tokens, D width inside the projector.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ossicle.models.projectors import (
    LONGEST_S,
    MOST_WIDTH,
    BaseProjectorConfig,
    check_kernel,
    join_frames,
    whole_frames,
)
from ossicle.section import section


class StackProjector(nn.Module):
    """Concatenate ``stack`` neighbouring frames and apply one linear layer, or two with a GELU between them.

    Frames are normalised one by one. ``width`` is that of the hidden layer; None leaves the layer out. A token with at
    least one valid frame is valid.
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

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with their mask (B, M)."""
        joined, mask = join_frames(self.norm_frames(frames), frame_mask, self.frames_per_token)
        return self.out(self.hidden(joined)) * mask[..., None], mask


class StackMLPProjector(nn.Module):
    """Concatenate ``stack`` neighbouring frames, and apply a gated layer of ``width`` and a linear layer.

    Each of the two has an RMSNorm before it, and no bias. A token with at least one valid frame is valid.

    Source: Ultravox 0.5 (``projector_act`` swiglu, ``projector_ln_mid`` true), where ``up`` is called ``linear_1`` and
    ``out`` ``linear_2``.
    """

    def __init__(self, in_dim: int, out_dim: int, *, stack: int, width: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.frames_per_token = in_dim, out_dim, stack
        self.norm_frames = nn.RMSNorm(stack * in_dim, eps=1e-6)
        self.up = nn.Linear(stack * in_dim, 2 * width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.out = nn.Linear(width, out_dim, bias=False)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with their mask (B, M)."""
        joined, mask = join_frames(frames, frame_mask, self.frames_per_token)
        values, gate = self.up(self.norm_frames(joined)).chunk(2, -1)
        return self.out(self.norm(F.silu(gate) * values)) * mask[..., None], mask


class ConvProjector(nn.Module):
    """``halvings`` convolutions of stride 2, which each halve the frame rate, then a linear layer.

    A convolution reads zeros beyond the end of an utterance, so that padding changes nothing. A token is valid if the
    first of its ``2 ** halvings`` frames is valid.
    """

    def __init__(self, in_dim: int, out_dim: int, *, halvings: int, width: int, kernel: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        self.frames_per_token: int = 2**halvings
        self.norm_frames = nn.LayerNorm(in_dim)
        self.enter = nn.Linear(in_dim, width)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, stride=2, padding=(kernel - 1) // 2) for _ in range(halvings)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(halvings))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_dim)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with their mask (B, M)."""
        values, mask = self.enter(self.norm_frames(frames)), frame_mask
        for conv, norm in zip(self.convs, self.norms, strict=True):
            values = norm(values) * mask[..., None]
            values = F.gelu(conv(values.transpose(1, 2)).transpose(1, 2))  # (B, ceil(T / 2), D)
            mask = mask[:, ::2]
        return self.out(self.norm(values)) * mask[..., None], mask


@section
class LinearConfig(BaseProjectorConfig):
    """Concatenation of neighbouring frames and one linear layer: the simplest projector."""

    name: Literal["linear"] = "linear"
    token_s: float = Field(default=0.08, gt=0, le=LONGEST_S)
    """Seconds of speech per token, rounded to whole frames."""

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
        """Return a `StackProjector` with one layer."""
        return StackProjector(in_dim, out_dim, stack=whole_frames(self.token_s, frame_rate_hz))


@section
class MLPConfig(BaseProjectorConfig):
    """Concatenation of neighbouring frames and two linear layers with a GELU between them."""

    name: Literal["mlp"] = "mlp"
    token_s: float = Field(default=0.08, gt=0, le=LONGEST_S)
    """Seconds of speech per token, rounded to whole frames."""
    width: int = Field(default=2048, ge=1, le=MOST_WIDTH)
    """Width of the hidden layer."""

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
        """Return a `StackProjector` with two layers."""
        return StackProjector(in_dim, out_dim, stack=whole_frames(self.token_s, frame_rate_hz), width=self.width)


@section
class StackMLPConfig(BaseProjectorConfig):
    """Concatenation of neighbouring frames and a gated layer with RMSNorm, as in Ultravox."""

    name: Literal["stack-mlp"] = "stack-mlp"
    token_s: float = Field(default=0.16, gt=0, le=LONGEST_S)
    """Seconds of speech per token, rounded to whole frames."""
    width: int = Field(default=2048, ge=1, le=MOST_WIDTH)
    """Width of the hidden layer after its gate."""

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
        """Return a `StackMLPProjector`."""
        return StackMLPProjector(in_dim, out_dim, stack=whole_frames(self.token_s, frame_rate_hz), width=self.width)


@section
class ConvConfig(BaseProjectorConfig):
    """Convolutions of stride 2 and a linear layer."""

    name: Literal["conv"] = "conv"
    token_s: float = Field(default=0.08, gt=0, le=LONGEST_S)
    """Seconds of speech per token, rounded to a power of two of frames."""
    width: int = Field(default=1024, ge=1, le=MOST_WIDTH)
    """Number of channels of each convolution."""
    kernel: int = Field(default=3, ge=1, le=999)
    """Frames that a convolution reads; must be odd."""

    @model_validator(mode="after")
    def _check(self) -> ConvConfig:
        check_kernel(self.kernel, "frames")
        return self

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
        """Return a `ConvProjector`."""
        halvings = max(0, round(math.log2(max(1.0, self.token_s * frame_rate_hz))))
        return ConvProjector(in_dim, out_dim, halvings=halvings, width=self.width, kernel=self.kernel)
