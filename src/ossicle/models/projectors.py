"""The projector: the only part that trains. It turns encoder frames into vectors that the LLM reads like tokens.

Shape legend: B utterances, T encoder frames, W frames per window, V valid windows of the whole batch, Q queries per
window, M = Q * ceil(T / W) speech tokens, D width of the Q-Former.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from ossicle.batch import Padded
from ossicle.models.attention import attend
from ossicle.models.frame_projectors import ConvConfig, LinearConfig, MLPConfig, match_output
from ossicle.section import section

BERT_NORM_EPS = 1e-12
POSITION_INIT_STD = 0.5
"""Frames have unit variance after their layer norm: attention must be able to tell positions apart from the start."""


class Attention(nn.Module):
    """Multi-head attention with the output projection, residual and post-norm of a BERT layer."""

    def __init__(self, width: int, heads: int, *, kv_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(kv_dim, width)
        self.value = nn.Linear(kv_dim, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=BERT_NORM_EPS)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let ``x`` (V, Q, D) read ``context`` (V, W, kv_dim); ``mask`` (V, W) is True where a key may be read."""
        query, key, value = (
            layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (V, heads, Q or W, D / heads)
            for layer, source in ((self.query, x), (self.key, context), (self.value, context))
        )
        readable = None if mask is None else mask[:, None, None, :]
        attended = attend(query, key, value, mask=readable, dropout=self.dropout if self.training else 0.0)
        out = self.out(attended.transpose(1, 2).flatten(-2))  # (V, Q, D)
        return self.norm(x + F.dropout(out, self.dropout, self.training))


class QFormerLayer(nn.Module):
    """Self-attention among a window's queries, cross-attention to its frames, feed-forward; all post-norm."""

    def __init__(self, width: int, heads: int, *, in_dim: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, kv_dim=width, dropout=dropout)
        self.cross_attention = Attention(width, heads, kv_dim=in_dim, dropout=dropout)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)
        self.norm = nn.LayerNorm(width, eps=BERT_NORM_EPS)
        self.dropout = dropout

    def forward(self, queries: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Update ``queries`` (V, Q, D) from ``frames`` (V, W, in_dim) where ``mask`` (V, W) is True."""
        queries = self.self_attention(queries, queries)
        queries = self.cross_attention(queries, frames, mask)
        out = self.down(F.gelu(self.up(queries)))
        return self.norm(queries + F.dropout(out, self.dropout, self.training))


class QFormerProjector(nn.Module):
    """Window-level Q-Former: every window of ``window`` frames becomes ``queries`` vectors of the LLM's width.

    All valid windows of a batch go through the layers as one program: there is no loop over utterances or windows, and
    windows that hold only padding cost nothing. A window with at least one valid frame yields ``queries`` valid
    tokens, any other window masked ones.

    Source: METHOD section 1; Züfle & Niehues 2025, section 3.1. ``window_positions`` (learned positions of the frames
    inside a window) is not in the paper.
    """

    def __init__(self, in_dim: int, out_dim: int, config: QFormerConfig, *, window: int) -> None:
        super().__init__()
        self.config, self.in_dim, self.out_dim = config, in_dim, out_dim
        self.window, self.num_queries = window, config.queries
        width = config.width
        self.norm_frames = nn.LayerNorm(in_dim)
        self.queries = nn.Parameter(torch.zeros(config.queries, width))
        self.norm_queries = nn.LayerNorm(width, eps=BERT_NORM_EPS)
        self.positions = nn.Parameter(torch.zeros(window, in_dim)) if config.window_positions else None
        self.layers = nn.ModuleList(
            QFormerLayer(width, config.heads, in_dim=in_dim, ffn=config.ffn, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.out = nn.Linear(width, out_dim)
        self.dropout = config.dropout
        self._init_weights(config.init_std)

    def _init_weights(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.queries, std=std)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=POSITION_INIT_STD)

    @property
    def frames_per_token(self) -> float:
        """Encoder frames for each token."""
        return self.window / self.num_queries

    def num_tokens(self, num_frames: int) -> int:
        """How many speech tokens ``num_frames`` frames become."""
        return self.num_queries * -(-num_frames // self.window)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with theirs (B, M)."""
        batch, length, _ = frames.shape
        padding = -length % self.window
        frames = F.pad(self.norm_frames(frames), (0, 0, 0, padding))
        windows = frames.unflatten(1, (-1, self.window))  # (B, M / Q, W, in_dim)
        mask = F.pad(frame_mask, (0, padding)).unflatten(1, (-1, self.window))  # (B, M / Q, W)
        valid = mask.any(-1)  # (B, M / Q)
        windows, mask = windows[valid], mask[valid]  # (V, W, in_dim), (V, W)
        if self.positions is not None:
            windows = windows + self.positions
        queries = F.dropout(self.norm_queries(self.queries), self.dropout, self.training)
        queries = queries.expand(len(windows), -1, -1)  # (V, Q, D)
        for layer in self.layers:
            queries = layer(queries, windows, mask)
        projected = self.out(queries)  # (V, Q, out_dim)
        tokens = projected.new_zeros(batch, valid.shape[1], self.num_queries, self.out_dim)
        tokens[valid] = projected
        return tokens.flatten(1, 2), valid.repeat_interleave(self.num_queries, dim=1)


@section
class QFormerConfig:
    """The paper's projector; sizes below are its own (42.5 M parameters for HuBERT-large and Llama-3.1-8B)."""

    name: Literal["qformer"] = "qformer"
    width: int = 768
    heads: int = 12
    layers: int = Field(default=4, ge=1)
    ffn: int = 3072
    queries: int = Field(default=4, ge=1)
    """Vectors per window."""
    window_s: float = Field(default=1 / 3, gt=0)
    """Length of a window in seconds; rounded to whole frames (17 at 50 frames a second)."""
    dropout: float = 0.1
    window_positions: bool = False
    """Learned positions of the frames in a window (not in the paper)."""
    init_std: float = Field(default=0.02, gt=0)
    """Of the weights at the start. 0.02 is BERT's, for a width of 768; narrow projectors want about 1 / sqrt(width)."""
    match_embedding_rms: bool = True
    """Start the output with the scale and the mean of the LLM's token embeddings (the paper: ``init_std`` and zero)."""

    def build(
        self,
        in_dim: int,
        out_dim: int,
        *,
        frame_rate_hz: float,
        embedding_rms: float,
        embedding_mean: Tensor | None = None,
    ) -> QFormerProjector:
        """Make the projector between an encoder of width ``in_dim`` and an LLM of width ``out_dim``."""
        window = max(1, round(self.window_s * frame_rate_hz))
        projector = QFormerProjector(in_dim, out_dim, self, window=window)
        if self.match_embedding_rms:
            match_output(projector.out, embedding_rms, embedding_mean)
        return projector


def name(settings: Any) -> str:
    """Which projector ``settings`` are about: the paper's where they do not say."""
    return str(settings.get("name", "qformer") if isinstance(settings, dict) else settings.name)


ProjectorConfig = Annotated[
    Annotated[QFormerConfig, Tag("qformer")]
    | Annotated[MLPConfig, Tag("mlp")]
    | Annotated[ConvConfig, Tag("conv")]
    | Annotated[LinearConfig, Tag("linear")],
    Discriminator(name),
]
"""Every projector that a recipe can name: a new one is added here."""


def project(projector: nn.Module, frames: Padded) -> Padded:
    """`Padded` in, `Padded` out."""
    return Padded(*projector(frames.values, frames.mask))
