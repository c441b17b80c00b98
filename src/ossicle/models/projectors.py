"""Projectors: modules that turn encoder frames into vectors which the LLM reads like token embeddings.

Shape legend: B utterances, T encoder frames, W frames per window, V valid windows of the whole batch, Q queries per
window, M speech tokens, D width inside the projector.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from ossicle.batch import Padded
from ossicle.errors import ConfigError
from ossicle.models.packing import attend
from ossicle.section import section

BERT_NORM_EPS = 1e-12
MOST_WIDTH, LONGEST_S = 65_536, 60.0  # upper bounds of widths, and of windows and tokens in seconds
POSITION_INIT_STD = 0.5
"""Frames have unit variance after their layer norm. Smaller position vectors would be lost beside them."""


@section
class BaseProjectorConfig:
    """Settings and construction that all projectors share. A subclass defines `new_module`."""

    match_embedding_rms: bool = True
    """Initialise the output layer with the scale and the mean of the LLM's token embeddings. If False, the projector
    keeps its own initialisation (for ``qformer``: ``init_std`` and zero bias, as in the paper)."""

    def build(
        self,
        in_dim: int,
        out_dim: int,
        *,
        frame_rate_hz: float,
        embedding_rms: float,
        embedding_mean: Tensor | None = None,
        llm: Any = None,
    ) -> nn.Module:
        """Build the projector between an encoder of width ``in_dim`` and an LLM of width ``out_dim``.

        Args:
            in_dim: Width of an encoder frame.
            out_dim: Width of the LLM's token embeddings.
            frame_rate_hz: Encoder frames per second.
            embedding_rms: Root mean square of the LLM's token embeddings.
            embedding_mean: Mean of the LLM's token embeddings (out_dim,), or None for zero.
            llm: The LLM, whose tokens ``ctc`` predicts; other projectors ignore it.
        """
        projector = self.new_module(in_dim, out_dim, frame_rate_hz)
        if self.match_embedding_rms:
            match_output(projector.get_submodule("out"), embedding_rms, embedding_mean)
        return projector

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
        """Return the projector with its own initialisation; ``projector.out`` is its last linear layer.

        Its input must have unit variance, as a layer norm gives it.
        """
        from ossicle.models.stacking import new_projector  # few runs use the projectors there

        return new_projector(self, in_dim, out_dim, frame_rate_hz)


def check_heads(width: int, heads: int) -> None:
    """Raise `ConfigError` if ``width`` cannot be divided among the attention ``heads``."""
    if width % heads:
        raise ConfigError(f"model.projector.width={width} must be a multiple of heads={heads}")


@torch.no_grad()
def match_output(out: Any, rms: float, mean: Tensor | None = None) -> None:
    """Initialise ``out`` so that its output has the root mean square ``rms`` and the mean ``mean`` (D_out,).

    The input of ``out`` must have unit variance, so that the scale of the weights decides the spread of the output.
    Token embeddings often share a large common vector, which the projector would otherwise have to learn first.
    An ``out`` without a bias gets the root mean square only.
    """
    common = 0.0 if mean is None or out.bias is None else float(mean.square().mean())
    nn.init.normal_(out.weight, std=max(rms**2 - common, 0.0) ** 0.5 / out.in_features**0.5)
    if out.bias is not None:
        out.bias.copy_(torch.zeros_like(out.bias) if mean is None else mean)


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
        """Let ``x`` (V, Q, D) attend to ``context`` (V, W, kv_dim); ``mask`` (V, W) is True for valid keys."""
        query, key, value = (
            torch.unflatten(layer(source), -1, (self.heads, -1)).transpose(1, 2)  # (V, heads, Q or W, D / heads)
            for layer, source in ((self.query, x), (self.key, context), (self.value, context))
        )
        readable = None if mask is None else mask[:, None, None, :]
        attended = attend(query, key, value, mask=readable, dropout=self.dropout if self.training else 0.0)
        out = self.out(attended.transpose(1, 2).flatten(-2))  # (V, Q, D)
        normed: Tensor = self.norm(x + F.dropout(out, self.dropout, self.training))
        return normed


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
        normed: Tensor = self.norm(queries + F.dropout(out, self.dropout, self.training))
        return normed


class QFormerProjector(nn.Module):
    """Window-level Q-Former: every window of ``window`` frames becomes ``queries`` vectors of the LLM's width.

    All valid windows of a batch go through the layers at once, and windows that hold only padding are not computed.
    A window with at least one valid frame yields ``queries`` valid tokens, any other window yields masked ones.

    Source: METHOD section 1; Züfle & Niehues 2025, section 3.1. ``window_positions`` (learned positions of the frames
    inside a window) is not in the paper.
    """

    def __init__(self, in_dim: int, out_dim: int, config: QFormerConfig, *, window: int) -> None:
        super().__init__()
        self.config, self.in_dim, self.out_dim = config, in_dim, out_dim
        self.window, self.num_queries = window, config.queries
        self.frames_per_token = window / config.queries
        width = config.width
        self.norm_frames = nn.LayerNorm(in_dim) if config.frame_norm == "layer" else nn.Identity()
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

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with their mask (B, M).

        M is Q * ceil(T / W).
        """
        batch, length, _ = frames.shape
        padding = -length % self.window
        frames = F.pad(self.norm_frames(frames), (0, 0, 0, padding))
        windows = torch.unflatten(frames, 1, (-1, self.window))  # (B, M / Q, W, in_dim)
        mask = torch.unflatten(F.pad(frame_mask, (0, padding)), 1, (-1, self.window))  # (B, M / Q, W)
        valid = mask.any(-1)  # (B, M / Q)
        places = valid.nonzero(as_tuple=True)  # an index by the mask would wait for the GPU each time
        windows, mask = windows[places], mask[places]  # (V, W, in_dim), (V, W)
        if self.config.pad_windows == "zero":
            windows, mask = windows * mask[..., None], torch.ones_like(mask)
        if self.positions is not None:
            windows = windows + self.positions
        queries = F.dropout(self.norm_queries(self.queries), self.dropout, self.training)
        queries = queries.expand(len(windows), -1, -1)  # (V, Q, D)
        for layer in self.layers:
            queries = layer(queries, windows, mask)
        projected = self.out(queries)  # (V, Q, out_dim)
        tokens = projected.new_zeros(batch, valid.shape[1], self.num_queries, self.out_dim)
        tokens[places] = projected
        return tokens.flatten(1, 2), valid.repeat_interleave(self.num_queries, dim=1)


@section
class QFormerConfig(BaseProjectorConfig):
    """The paper's window-level Q-Former, with its sizes: 42.5 M parameters for HuBERT-large and Llama-3.1-8B."""

    name: Literal["qformer"] = "qformer"
    width: int = Field(default=768, ge=1, le=MOST_WIDTH)
    """Width of the queries and of every layer."""
    heads: int = Field(default=12, ge=1)
    """Attention heads per layer; ``width`` must be a multiple of it."""
    layers: int = Field(default=4, ge=1, le=256)
    """Number of transformer layers."""
    ffn: int = Field(default=3072, ge=1, le=4 * MOST_WIDTH)
    """Width of the hidden layer of each feed-forward block."""
    queries: int = Field(default=4, ge=1, le=1024)
    """Speech tokens per window."""
    window_s: float = Field(default=1 / 3, gt=0, le=LONGEST_S)
    """Length of a window in seconds, rounded to whole frames (17 at 50 frames per second)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability in training."""
    window_positions: bool = False
    """Add learned positions to the frames of a window (not in the paper)."""
    frame_norm: Literal["layer", "none"] = "layer"
    """Normalise every frame before the attention. Granite Speech has ``none``."""
    pad_windows: Literal["mask", "zero"] = "mask"
    """Fill the last window with masked frames, or, as Granite Speech, with ``zero`` vectors that are attended to."""
    init_std: float = Field(default=0.02, gt=0, le=10)
    """Standard deviation of the initial weights. The default is BERT's, for a width of 768. Narrow projectors need
    about ``1 / sqrt(width)``."""

    @model_validator(mode="after")
    def _check(self) -> QFormerConfig:
        check_heads(self.width, self.heads)
        return self

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> QFormerProjector:
        """Return a `QFormerProjector` with windows of ``window_s`` seconds."""
        return QFormerProjector(in_dim, out_dim, self, window=max(1, round(self.window_s * frame_rate_hz)))


@section
class LinearConfig(BaseProjectorConfig):
    """Concatenation of neighbouring frames and one linear layer: the simplest projector."""

    name: Literal["linear"] = "linear"
    token_s: float = Field(default=0.08, gt=0, le=LONGEST_S)
    """Seconds of speech per token, rounded to whole frames."""


@section
class MLPConfig(BaseProjectorConfig):
    """Concatenation of neighbouring frames and two linear layers with a GELU between them."""

    name: Literal["mlp"] = "mlp"
    token_s: float = Field(default=0.08, gt=0, le=LONGEST_S)
    """Seconds of speech per token, rounded to whole frames."""
    width: int = Field(default=2048, ge=1, le=MOST_WIDTH)
    """Width of the hidden layer."""


@section
class StackMLPConfig(BaseProjectorConfig):
    """Concatenation of neighbouring frames and a gated layer with RMSNorm, as in Ultravox."""

    name: Literal["stack-mlp"] = "stack-mlp"
    token_s: float = Field(default=0.16, gt=0, le=LONGEST_S)
    """Seconds of speech per token, rounded to whole frames."""
    width: int = Field(default=2048, ge=1, le=MOST_WIDTH)
    """Width of the hidden layer after its gate."""


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
        if self.kernel % 2 == 0:
            raise ConfigError(f"model.projector.kernel={self.kernel} is even: set an odd number of frames")
        return self


@section
class CTCConfig(BaseProjectorConfig):
    """A network that spells speech with the LLM's own tokens, for the objective ``ctc`` (not in the paper).

    The LLM gets one vector per spoken token: the mean of its token embeddings, weighted by their probabilities.
    """

    name: Literal["ctc"] = "ctc"
    width: int = Field(default=256, ge=1, le=MOST_WIDTH)
    """Width of every layer."""
    heads: int = Field(default=4, ge=1)
    """Attention heads per layer; ``width`` must be a multiple of it."""
    layers: int = Field(default=4, ge=1, le=256)
    """Number of layers. After two thirds of them the network also spells characters."""
    ffn: int = Field(default=1024, ge=1, le=4 * MOST_WIDTH)
    """Width of the hidden layer of each feed-forward block."""
    kernel: int = Field(default=15, ge=1, le=999)
    """Positions that a convolution reads; must be odd."""
    position_s: float = Field(default=0.06, gt=0, le=LONGEST_S)
    """Seconds of speech per position of the network, rounded to whole frames. A position spells one token at most."""
    merges: int = Field(default=4000, ge=0, le=10**7)
    """Number of merges of the LLM's tokenizer that spell words. Fewer merges give fewer and shorter tokens, which need
    less data to learn and make longer sequences."""
    prompt: int = Field(default=16, ge=0, le=1024)
    """Number of learned vectors before the speech. They tell the LLM what mixtures of its words cannot say."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability in training."""

    @model_validator(mode="after")
    def _check(self) -> CTCConfig:
        check_heads(self.width, self.heads)
        if self.kernel % 2 == 0:
            raise ConfigError(f"model.projector.kernel={self.kernel} is even: set an odd number of positions")
        return self

    def build(self, in_dim: int, out_dim: int, *, frame_rate_hz: float, llm: Any = None, **_: Any) -> nn.Module:
        """Build the projector for the tokens of ``llm``; its output is made of their embeddings."""
        from ossicle.models.ctc import ctc_projector  # few runs use it

        return ctc_projector(in_dim, self, llm, frame_rate_hz=frame_rate_hz)


@section
class CIFConfig(BaseProjectorConfig):
    """A network that ends a token where the content does, by continuous integrate-and-fire (not in the paper).

    The number of tokens follows what is said, not the time. The objective ``cif`` trains it.
    """

    name: Literal["cif"] = "cif"
    width: int = Field(default=256, ge=1, le=MOST_WIDTH)
    """Width of every layer."""
    heads: int = Field(default=4, ge=1)
    """Attention heads per layer; ``width`` must be a multiple of it."""
    layers: int = Field(default=2, ge=0, le=256)
    """Number of layers before the weights of the positions."""
    ffn: int = Field(default=1024, ge=1, le=4 * MOST_WIDTH)
    """Width of the hidden layer of each feed-forward block."""
    kernel: int = Field(default=15, ge=1, le=999)
    """Positions that a convolution reads; must be odd."""
    position_s: float = Field(default=0.04, gt=0, le=LONGEST_S)
    """Seconds of speech per position, rounded to whole frames. A position ends one token at most, save in training."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability in training."""

    @model_validator(mode="after")
    def _check(self) -> CIFConfig:
        check_heads(self.width, self.heads)
        if self.kernel % 2 == 0:
            raise ConfigError(f"model.projector.kernel={self.kernel} is even: set an odd number of positions")
        return self

    def new_module(self, in_dim: int, out_dim: int, frame_rate_hz: float) -> nn.Module:
        """Return a `ossicle.models.cif.CIFProjector`."""
        from ossicle.models.cif import CIFProjector  # few runs use it

        return CIFProjector(in_dim, out_dim, self, rate_hz=frame_rate_hz)


def projector_name(settings: Any) -> str | None:
    """Return the ``name`` in ``settings``, ``qformer`` for a mapping without one, or None for other values."""
    return str(settings.get("name", "qformer")) if isinstance(settings, dict) else getattr(settings, "name", None)


ProjectorConfig = Annotated[
    Annotated[QFormerConfig, Tag("qformer")]
    | Annotated[MLPConfig, Tag("mlp")]
    | Annotated[ConvConfig, Tag("conv")]
    | Annotated[LinearConfig, Tag("linear")]
    | Annotated[CTCConfig, Tag("ctc")]
    | Annotated[CIFConfig, Tag("cif")]
    | Annotated[StackMLPConfig, Tag("stack-mlp")],
    Discriminator(projector_name),
]
"""The projectors that a recipe can name. Add a new one to this union."""


def project(projector: nn.Module, frames: Padded) -> Padded:
    """Apply ``projector`` to ``frames`` (B, T, in_dim) and return the speech tokens (B, M, out_dim)."""
    return Padded(*projector(frames.values, frames.mask))
