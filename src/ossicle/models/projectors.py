"""Projectors: modules that turn encoder frames into vectors which the LLM reads like token embeddings.

The paper's Q-Former is here, and what all projectors share. `PLACES` says where the others are.

Shape legend: B utterances, T encoder frames, W frames per window, N windows, V valid windows of the whole batch,
Q queries per window, M speech tokens, D width inside the projector.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ossicle.batch import Padded
from ossicle.errors import ConfigError, ModelError
from ossicle.models.dropout import dropout, of_windows
from ossicle.models.packing import attend
from ossicle.section import Named, section

BERT_NORM_EPS = 1e-12
MOST_WIDTH, LONGEST_S = 65_536, 60.0  # upper bounds of widths, and of windows and tokens in seconds
POSITION_INIT_STD = 0.5
"""Frames have unit variance after their layer norm. Smaller position vectors would be lost beside them."""


@section
class BaseProjectorConfig:
    """Settings and construction that all projectors share. A subclass defines `new_module`."""

    name: str
    """Name of the projector in recipes."""
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
        raise NotImplementedError(f"{type(self).__name__} must define new_module or build")


def check_heads(width: int, heads: int) -> None:
    """Raise `ConfigError` if ``width`` cannot be divided among the attention ``heads``."""
    if width % heads:
        raise ConfigError(f"model.projector.width={width} must be a multiple of heads={heads}")


def check_kernel(kernel: int, unit: str) -> None:
    """Raise `ConfigError` if a convolution over ``kernel`` frames or positions, the ``unit``, has no middle."""
    if kernel % 2 == 0:
        raise ConfigError(f"model.projector.kernel={kernel} is even: set an odd number of {unit}")


def whole_frames(length_s: float, frame_rate_hz: float) -> int:
    """Return the number of frames in ``length_s`` seconds, rounded, but at least one."""
    return max(1, round(length_s * frame_rate_hz))


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
        """Let ``x`` (V, Q, D) attend to ``context`` (V, W, kv_dim).

        ``mask``, broadcast to (V, heads, Q, W), is True where a key may be read.
        """
        query, key, value = (
            torch.unflatten(layer(source), -1, (self.heads, -1)).transpose(1, 2)  # (V, heads, Q or W, D / heads)
            for layer, source in ((self.query, x), (self.key, context), (self.value, context))
        )
        attended = attend(query, key, value, mask=mask, dropout=self.dropout if self.training else 0.0)
        out = self.out(attended.transpose(1, 2).flatten(-2))  # (V, Q, D)
        normed: Tensor = self.norm(x + dropout(out, self.dropout, self.training))
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

    def forward(self, queries: Tensor, frames: Tensor, mask: Tensor, readable: Tensor | None = None) -> Tensor:
        """Update ``queries`` (V, Q, D) from ``frames`` (V, W, in_dim) where ``mask`` (V, W) is True.

        ``readable`` (Q, Q) is True where a query may read another one; None allows all.
        """
        queries = self.self_attention(queries, queries, readable)
        queries = self.cross_attention(queries, frames, mask[:, None, None, :])
        out = self.down(F.gelu(self.up(queries)))
        normed: Tensor = self.norm(queries + dropout(out, self.dropout, self.training))
        return normed


class QFormerProjector(nn.Module):
    """Window-level Q-Former: every window of ``window`` frames becomes ``queries`` vectors of the LLM's width.

    All valid windows of a batch go through the layers at once, and windows that hold only padding are not computed.
    A window with at least one valid frame yields ``queries`` valid tokens, any other window yields masked ones.
    ``free_queries`` more tokens per window come after all of these. Free queries read the others, which do not read
    them, so that the first tokens are the same with and without them. `aligned` removes their tokens.

    Source: METHOD section 1; Züfle & Niehues 2025, section 3.1. ``window_positions`` (learned positions of the frames
    inside a window) and ``free_queries`` are not in the paper.
    """

    def __init__(self, in_dim: int, out_dim: int, config: QFormerConfig, *, window: int) -> None:
        super().__init__()
        self.config, self.in_dim, self.out_dim = config, in_dim, out_dim
        self.window, self.num_queries, self.num_free = window, config.queries, config.free_queries
        self.frames_per_token = window / (config.queries + config.free_queries)
        width = config.width
        self.norm_frames = nn.LayerNorm(in_dim) if config.frame_norm == "layer" else nn.Identity()
        self.queries = nn.Parameter(torch.zeros(config.queries, width))
        self.free = nn.Parameter(torch.zeros(config.free_queries, width)) if config.free_queries else None
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
        if self.free is not None:
            nn.init.normal_(self.free, std=std)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, out_dim) with their mask (B, M).

        M is (Q + free queries) * ceil(T / W). Padding is at the end of the tokens of each kind.
        """
        batch, length, _ = frames.shape
        padding = -length % self.window
        frames = F.pad(self.norm_frames(frames), (0, 0, 0, padding))
        windows = torch.unflatten(frames, 1, (-1, self.window))  # (B, N, W, in_dim)
        mask = torch.unflatten(F.pad(frame_mask, (0, padding)), 1, (-1, self.window))  # (B, N, W)
        valid = mask.any(-1)  # (B, N)
        places = valid.nonzero(as_tuple=True)  # an index by the mask would wait for the GPU each time
        windows, mask = windows[places], mask[places]  # (V, W, in_dim), (V, W)
        if self.config.pad_windows == "zero":
            windows, mask = windows * mask[..., None], torch.ones_like(mask)
        if self.positions is not None:
            windows = windows + self.positions
        learned: Tensor = self.queries
        readable = None
        if self.free is not None:
            learned = torch.cat([learned, self.free])
            bound = torch.arange(len(learned), device=learned.device) < self.num_queries
            readable = bound | ~bound[:, None]
        queries = dropout(self.norm_queries(learned), self.dropout, self.training, shared=True)
        queries = queries.expand(len(windows), -1, -1)  # (V, Q, D)
        with of_windows(places):
            for layer in self.layers:
                queries = layer(queries, windows, mask, readable)
        projected = self.out(queries)  # (V, Q, out_dim)
        tokens = projected.new_zeros(batch, valid.shape[1], len(learned), self.out_dim)
        tokens[places] = projected
        kinds = tokens.split([self.num_queries, self.num_free], 2)
        masks = [valid.repeat_interleave(kind.shape[2], dim=1) for kind in kinds]
        return torch.cat([kind.flatten(1, 2) for kind in kinds], 1), torch.cat(masks, 1)


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
    free_queries: int = Field(default=0, ge=0, le=1024)
    """Further speech tokens per window, after all others, which objectives that compare speech with text leave out: for
    what a transcript does not contain. Losses of the LLM's answers train them. Not in the paper."""
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
        return QFormerProjector(in_dim, out_dim, self, window=whole_frames(self.window_s, frame_rate_hz))


PLACES = {
    "qformer": "ossicle.models.projectors:QFormerConfig",
    "mlp": "ossicle.models.stacking:MLPConfig",
    "conv": "ossicle.models.stacking:ConvConfig",
    "linear": "ossicle.models.stacking:LinearConfig",
    "ctc": "ossicle.models.ctc:CTCConfig",
    "cif": "ossicle.models.cif:CIFConfig",
    "stack-mlp": "ossicle.models.stacking:StackMLPConfig",
}
"""Module and section of each projector, by its name in recipes. Add a new one here."""
ProjectorConfig = Annotated[BaseProjectorConfig, Named(PLACES, default="qformer")]
"""Every projector that a recipe can name."""


def new_projector(config: ProjectorConfig, encoder: Any, llm: Any) -> Any:
    """Build the projector between ``encoder`` and ``llm``. Raises `ModelError` if it does not fit into memory."""
    try:
        return config.build(
            encoder.dim,
            llm.dim,
            frame_rate_hz=encoder.frame_rate_hz,
            embedding_rms=llm.embedding_rms,
            embedding_mean=llm.embedding_mean,
            llm=llm,
        )
    except RuntimeError as error:  # PyTorch's allocator
        first = str(error).splitlines()[0]
        raise ModelError(f"model.projector does not fit into memory: set smaller sizes ({first})") from error


def project(projector: nn.Module, frames: Padded) -> Padded:
    """Apply ``projector`` to ``frames`` (B, T, in_dim) and return the speech tokens (B, M, out_dim)."""
    return Padded(*projector(frames.values, frames.mask))


def aligned(projector: Any, speech: Padded) -> Padded:
    """Return ``speech`` (B, M, out_dim) of ``projector`` without the tokens of free queries, for losses against a text.

    The free queries get a gradient of zero, which distributed training requires.
    """
    count = round(aligned_share(projector) * speech.mask.shape[1])
    return Padded(speech.values[:, :count], speech.mask[:, :count])


def aligned_share(projector: Any) -> float:
    """Return the share of the speech tokens of ``projector`` that `aligned` keeps."""
    free = getattr(projector, "num_free", 0)
    return float(projector.num_queries / (projector.num_queries + free)) if free else 1.0


def join_frames(frames: Tensor, mask: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    """Return every ``stack`` neighbouring ``frames`` (B, T, D) as one vector (B, P, stack * D), and their mask (B, P).

    Frames that ``mask`` (B, T) excludes become zeros. A vector with at least one valid frame is valid.
    """
    padding = -frames.shape[1] % stack
    frames = F.pad(frames * mask[..., None], (0, 0, 0, padding))
    valid = torch.unflatten(F.pad(mask, (0, padding)), 1, (-1, stack)).any(-1)
    return torch.unflatten(frames, 1, (-1, stack)).flatten(2), valid


def __getattr__(name: str) -> Any:
    """Import a projector's section when it is first used, so that a run reads only its own projector."""
    for place in PLACES.values():
        module, _, attribute = place.partition(":")
        if attribute == name:
            return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'ossicle.models.projectors' has no attribute '{name}'")
