"""Simple projectors: neighbouring frames joined, or convolutions, and linear layers.

Shape legend: B utterances, T encoder frames, M speech tokens, D width inside the projector.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        stack = self.frames_per_token
        padding = -frames.shape[1] % stack
        normed = F.pad(self.norm_frames(frames) * frame_mask[..., None], (0, 0, 0, padding))
        joined = torch.unflatten(normed, 1, (-1, stack)).flatten(2)  # (B, M, stack * in_dim)
        mask = torch.unflatten(F.pad(frame_mask, (0, padding)), 1, (-1, stack)).any(-1)  # (B, M)
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
        stack = self.frames_per_token
        padding = -frames.shape[1] % stack
        frames = F.pad(frames * frame_mask[..., None], (0, 0, 0, padding))
        joined = self.norm_frames(torch.unflatten(frames, 1, (-1, stack)).flatten(2))  # (B, M, stack * in_dim)
        mask = torch.unflatten(F.pad(frame_mask, (0, padding)), 1, (-1, stack)).any(-1)  # (B, M)
        values, gate = self.up(joined).chunk(2, -1)
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


def new_projector(config: Any, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
    """Return the projector of a section without a `new_module` of its own, with its own initialisation."""
    frames = config.token_s * frame_rate_hz
    stack = max(1, round(frames))
    match config.name:
        case "linear":
            return StackProjector(in_dim, out_dim, stack=stack)
        case "mlp":
            return StackProjector(in_dim, out_dim, stack=stack, width=config.width)
        case "stack-mlp":
            return StackMLPProjector(in_dim, out_dim, stack=stack, width=config.width)
        case "conv":
            halvings = max(0, round(math.log2(max(1.0, frames))))
            return ConvProjector(in_dim, out_dim, halvings=halvings, width=config.width, kernel=config.kernel)
        case _:
            raise NotImplementedError(f"{type(config).__name__} must define new_module or build")
