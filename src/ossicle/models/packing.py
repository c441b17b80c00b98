"""Ragged sequences side by side: join them, interleave them, pack them without padding, and attend within them.

Random batches of real utterances are more than half padding. Packing lays the sequences of a batch end to end, so that
every linear layer and norm of the LLM computes real positions only. Attention alone works on single sequences. There a
causal mask is sufficient, because padding on the right comes after every real position.

Shape legend: B sequences or windows, L longest of them (or queries), P real positions of the whole batch, H heads,
S keys, d width of a head, D width of the LLM, K spans of speech, M speech tokens, N text tokens, F tokens of a prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ossicle.batch import Mixed, Padded
from ossicle.models.dropout import dropout as drop
from ossicle.models.dropout import is_by_utterance
from ossicle.private import takes_registered_attention

ATTENTION = "ossicle_packed"
"""Name of `packed_attention` in transformers' registry."""
LONG = 64
"""Mean number of keys, those of a prefix included, from which attention on a CPU goes sequence by sequence."""
SHORT = 128
"""Positions up to which plain products in float32 are used on a CPU. Beyond them the fused kernel is faster."""
HALF = (torch.bfloat16, torch.float16)
Prefix = Sequence[tuple[Tensor, Tensor]]
"""Keys and values (1, H_kv, F, d) of each layer, for tokens that come before every sequence of a batch."""


def join(parts: list[Padded], *, pad: Literal["left", "right"] = "right") -> tuple[Padded, Tensor]:
    """Concatenate ragged sequences (B, L_k, D) along time, with all padding on one side: (B, L, D).

    Also return the order (B, L) in which positions of the plain concatenation were taken.
    """
    values = torch.cat([part.values.to(parts[0].values.dtype) for part in parts], 1)
    mask = torch.cat([part.mask for part in parts], 1)
    length = int(mask.sum(1).max())
    if pad == "right":
        order = torch.argsort((~mask).byte(), dim=1, stable=True)[:, :length]
    else:
        order = torch.argsort(mask.byte(), dim=1, stable=True)[:, -length:]
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return Padded(values[rows, order], mask[rows, order]), order


def interleave(text: Padded, spans: Padded, mixed: Mixed) -> tuple[Padded, Tensor]:
    """Insert each span of ``spans`` (K, M, D) before the token of ``text`` (B, N, D) where it starts: (B, L, D).

    Tokens that ``text`` masks are left out. Also return the index in N of the token at each position (B, L), which is
    -1 for speech and padding.
    """
    batch, length = text.mask.shape
    device = text.mask.device
    # A position's key is its token's index in the whole batch; for speech, the index of the first token it replaces.
    starts = (mixed.rows * length + mixed.starts)[:, None].expand_as(spans.mask)[spans.mask]
    tokens = torch.arange(batch * length, device=device).view(batch, length)[text.mask]
    keys = torch.cat([starts, tokens])  # (P,) speech first: it stays before a token of the same key
    order = keys.argsort(stable=True)
    values = torch.cat([spans.values[spans.mask].to(text.values.dtype), text.values[text.mask]])[order]
    lengths = torch.bincount(keys // length, minlength=batch)  # (B,)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]  # (B, L)
    indices = torch.cat([torch.full_like(starts, -1), tokens % length])[order]
    joined = values.new_zeros(*mask.shape, values.shape[-1]).masked_scatter(mask[..., None], values)
    return Padded(joined, mask), torch.full_like(mask, -1, dtype=torch.long).masked_scatter(mask, indices)


@dataclass(frozen=True)
class Packing:
    """The positions of each sequence of a batch in the packed order."""

    mask: Tensor  # (B, L) bool
    index: Tensor  # (P,) place of each real position in the flattened (B * L)
    prefix: Prefix = ()
    seen: dict[int, tuple[Tensor, Tensor]] | None = None  # filled by `packed_attention`, layer by layer, if it is given
    places: Tensor | None = None  # (B, L) packed place of each position, where sequences share some

    @classmethod
    def of(cls, mask: Tensor, prefix: Prefix = ()) -> Packing:
        """Return the packing of ``mask`` (B, L), whose padding is on the right, after a ``prefix`` that all share."""
        return cls(mask, mask.flatten().nonzero().squeeze(1), prefix)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of real positions of each sequence."""
        lengths: list[int] = self.mask.sum(1).tolist()
        return lengths

    @property
    def positions(self) -> Tensor:
        """Position ids (1, P), which start at 0 in each sequence."""
        return (self.index % self.mask.shape[1])[None]

    def pack(self, values: Tensor) -> Tensor:
        """Return the real positions of ``values`` (B, L, ...) as (P, ...)."""
        return values.flatten(0, 1).index_select(0, self.index)

    def unpack(self, values: Tensor) -> Tensor:
        """Return ``values`` (P, ...) as (B, L, ...), zeros in place of padding, or anything if places are shared."""
        if self.places is not None:
            return values[self.places]
        rows = values.new_zeros(self.mask.numel(), *values.shape[1:])
        # Not index_copy, which would keep ``values`` until the backward pass.
        return torch.unflatten(rows.index_put((self.index,), values), 0, tuple(self.mask.shape))

    def empty_mask(self) -> Tensor:
        """Return a 4-D attention mask, which transformers passes on unchanged; `packed_attention` ignores it."""
        return self.mask.new_empty(1, 1, 0, 0)


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention within each sequence of ``options["packing"]``, or ordinary attention if there is no packing.

    The signature is that of transformers' attention functions. ``query`` is (1, H, P, d), ``key`` and ``value`` are
    (1, H_kv, P, d), the result is (1, P, H, d).
    """
    packing: Packing | None = options.pop("packing", None)
    window, scale = options.get("sliding_window"), options.get("scaling")
    if packing is None:
        if query.device.type == "cpu" and query.shape[2] == 1:  # a step of generation, slow with the fused kernel
            return attend(query, key, value, mask=attention_mask, scale=scale).transpose(1, 2), None
        attended: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return attended, None
    if packing.seen is not None:
        packing.seen[getattr(module, "layer_idx", 0)] = key, value
    prefix = packing.prefix[module.layer_idx] if packing.prefix else ()
    if query.is_cuda and not prefix and packing.places is None:
        from ossicle.models import varlen  # only GPUs have its kernel

        if varlen.is_available(query):
            return varlen.causal_attention(query, key, value, packing.mask, window=window, scale=scale), None
    arguments = packing, query, key, value, window, scale, *prefix
    return checkpoint(_within, *arguments, use_reentrant=False, preserve_rng_state=False), None


def _within(
    packing: Packing, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None, *first: Tensor
) -> Tensor:
    """Compute attention within each sequence and to the ``first`` keys and values; input and output are packed.

    The backward pass runs this function again, so that only the packed vectors are kept until then.

    A GPU processes the sequences as one padded batch, because it waits for kernel launches. So does a CPU if they are
    short or share positions; it processes long ones one by one, which is faster than padding.
    """
    heads = query, key, value  # (1, H or H_kv, P, d) each
    before = first[0].shape[2] if first else 0
    apart = query.device.type == "cpu" and packing.places is None
    if apart and query.shape[2] >= (LONG - before) * len(packing.lengths):
        sequences = zip(*(torch.split(each, packing.lengths, 2) for each in heads), strict=True)
        return torch.cat([_causal(sequence, window, scale, first) for sequence in sequences], 2).transpose(1, 2)
    padded = [packing.unpack(each[0].transpose(0, 1)).transpose(1, 2) for each in heads]  # (B, H, L, d) each
    return packing.pack(_causal(padded, window, scale, first).transpose(1, 2))[None]


def _causal(heads: Iterable[Tensor], window: int | None, scale: float | None, first: Sequence[Tensor]) -> Tensor:
    """Compute causal attention of query, key and value (B, H, L, d), over at most ``window`` positions if given.

    The ``first`` keys and values come before those of every sequence.
    """
    query, key, value = heads
    if first:
        shared = (each.to(key.dtype).expand(len(key), -1, -1, -1) for each in first)
        key, value = (torch.cat(pair, 2) for pair in zip(shared, (key, value), strict=True))
    length = key.shape[2]
    local = None
    if window is not None and length > window:
        local = _window_mask(length, window, query.device)[-query.shape[2] :]
    return attend(query, key, value, mask=local, causal=local is None, scale=scale)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Return a mask (L, L) that is True for each position itself and the ``window`` - 1 before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def attend(  # noqa: PLR0913 - the arguments of torch's own function
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute softmax attention of ``query`` (B, H, L, d) over ``key`` and ``value`` (B, H_kv, S, d): (B, H, L, d).

    Each head of the keys serves H / H_kv neighbouring heads of the queries. ``mask``, broadcast to (B, H_kv, L, S), is
    True where a key may be read. ``causal`` requires no mask, and that the last query belongs to the last key.

    In half precision, for single queries and for short causal sequences, a CPU computes two plain matrix products. They
    are as fast as the fused kernel or faster, except for a single row (benchmarks/attention.py). Half precision also
    rounds scores and weights.
    """
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    whole = causal and length == key.shape[2]
    half = query.dtype in HALF or torch.is_autocast_enabled("cpu")
    plain = query.device.type == "cpu" and (half or length == 1 or (causal and length <= SHORT))
    plain = plain or (dropout > 0 and is_by_utterance())  # the fused kernel draws its own masks
    if causal and (plain or not whole):
        mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - length)
    if not plain:
        heads = query, repeat_kv(key, groups), repeat_kv(value, groups)
        return F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=whole, scale=scale, dropout_p=dropout)
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    query = torch.unflatten(query, 1, (-1, groups)).flatten(2, 3)  # (B, H_kv, H / H_kv * L, d)
    if mask is None:
        scores = query @ key.mT  # (B, H_kv, H / H_kv * L, S)
    else:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        if groups > 1 and mask.shape[-2] > 1:
            bias = torch.cat([bias] * groups, -2)
        if mask.dim() == 2:  # baddbmm adds the bias without another pass over the scores
            scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).mT)
            scores = torch.unflatten(scores, 0, (len(query), -1))
        else:
            scores = query @ key.mT + bias
    attended = drop(scores.softmax(-1), dropout, True) @ value
    return torch.unflatten(attended, 2, (groups, length)).flatten(1, 2)


def can_pack(model: Any) -> bool:
    """Return True if `packed_attention` can replace the attention of the transformers ``model``.

    The model must take a registered attention function, and must not cap attention logits or read both directions.
    """
    config = model.config.to_dict()
    unsupported = [config.get(name) for name in ("attn_logit_softcapping", "use_bidirectional_attention")]
    return takes_registered_attention(model) and not any(unsupported)


def register() -> None:
    """Register `packed_attention` with transformers under the name `ATTENTION`."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
