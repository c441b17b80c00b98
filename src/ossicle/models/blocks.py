"""Define the layers of the projectors ``ctc`` and ``cif``, and the sizes of these layers.

Shape legend: B utterances, P positions of the network, D its width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ossicle.models.dropout import dropout
from ossicle.models.packing import attend
from ossicle.models.projectors import MOST_WIDTH, BaseProjectorConfig, check_heads, check_kernel
from ossicle.section import section

TYPICAL_TOKENS_HZ = 4.0
"""Tokens in a second of English, for estimates of length. The true number depends on what is said."""


@section
class BlocksConfig(BaseProjectorConfig):
    """Sizes of a projector whose layers are a `Block` each."""

    width: int = Field(default=256, ge=1, le=MOST_WIDTH)
    """Width of every layer."""
    heads: int = Field(default=4, ge=1)
    """Attention heads per layer; ``width`` must be a multiple of it."""
    layers: int
    """Number of layers."""
    ffn: int = Field(default=1024, ge=1, le=4 * MOST_WIDTH)
    """Width of the hidden layer of each feed-forward block."""
    kernel: int = Field(default=15, ge=1, le=999)
    """Positions that a convolution reads; must be odd."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability in training."""

    @model_validator(mode="after")
    def _check(self) -> BlocksConfig:
        check_heads(self.width, self.heads)
        check_kernel(self.kernel, "positions")
        return self


class Block(nn.Module):
    """Self-attention, a convolution over neighbouring positions, and a feed-forward layer; each with a pre-norm.

    Source: Conformer (Gulati et al., 2020), with one feed-forward layer and a layer norm in the convolution.
    """

    def __init__(self, width: int, heads: int, *, ffn: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_conv, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.conv_in, self.conv_out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm_inside = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Update ``x`` (B, P, D), of which ``mask`` (B, P) is valid."""
        heads = torch.unflatten(self.attention_in(self.norm_attention(x)), -1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # 3 of (B, heads, P, D / heads)
        attended = attend(query, key, value, mask=mask[:, None, None])
        x = x + self._drop(self.attention_out(attended.transpose(1, 2).flatten(-2)))
        inside = F.glu(self.conv_in(self.norm_conv(x))) * mask[..., None]  # a convolution must not read padding
        inside = self.norm_inside(self.conv(inside.transpose(1, 2)).transpose(1, 2))
        x = x + self._drop(self.conv_out(F.silu(inside)))
        return x + self._drop(self.down(F.gelu(self.up(self.norm_ffn(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


def build_blocks(config: Any) -> nn.ModuleList:
    """Return the layers of a network with the sizes of ``config``, a `BlocksConfig`, before training."""
    sizes = {"ffn": config.ffn, "kernel": config.kernel, "dropout": config.dropout}
    return nn.ModuleList(Block(config.width, config.heads, **sizes) for _ in range(config.layers))
