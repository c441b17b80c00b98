"""Packing: the sequences of a batch laid end to end, so that the LLM computes nothing for padding.

Random batches of real utterances are more than half padding. Packed, every linear layer and norm sees only real
positions; attention alone goes back to single sequences, where a causal mask is all that is needed since padding on
the right comes after every real position.

Shape legend: B sequences, L longest of them, P real positions of the whole batch, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ossicle.models.attention import attend

ATTENTION = "ossicle_packed"
LONG = 64
"""Mean positions of a sequence from which attention on a CPU goes sequence by sequence."""


@dataclass(frozen=True)
class Packing:
    """Where the positions of each sequence are."""

    mask: Tensor  # (B, L) bool
    index: Tensor  # (P,) position of each real position in the flattened (B * L)

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """Pack by ``mask`` (B, L), whose padding is on the right."""
        return cls(mask, mask.flatten().nonzero().squeeze(1))

    @cached_property
    def lengths(self) -> list[int]:
        """Positions of each sequence."""
        return self.mask.sum(1).tolist()

    @property
    def positions(self) -> Tensor:
        """Position ids (1, P), from 0 in each sequence."""
        return (self.index % self.mask.shape[1])[None]

    def pack(self, values: Tensor) -> Tensor:
        """(B, L, ...) -> (P, ...)."""
        return values.flatten(0, 1).index_select(0, self.index)

    def unpack(self, values: Tensor) -> Tensor:
        """(P, ...) -> (B, L, ...), zeros where there is padding."""
        rows = values.new_zeros(self.mask.numel(), *values.shape[1:])
        # Not index_copy, which would keep ``values`` until the backward pass.
        return rows.index_put((self.index,), values).unflatten(0, self.mask.shape)

    def not_looked_at(self) -> Tensor:
        """Stands in for the attention mask: transformers passes a 4-D one on as it is, and `attention` ignores it."""
        return self.mask.new_empty(1, 1, 0, 0)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention for transformers' interface: within each sequence of ``options["packing"]``, or ordinary without it.

    ``query`` (1, H, P, d), ``key`` and ``value`` (1, H_kv, P, d) -> (1, P, H, d).
    """
    packing: Packing | None = options.pop("packing", None)
    window, scale = options.get("sliding_window"), options.get("scaling")
    if packing is None:
        if query.device.type == "cpu" and query.shape[2] == 1:  # a step of generation, slow with the fused kernel
            groups = query.shape[1] // key.shape[1]
            heads = query, repeat_kv(key, groups), repeat_kv(value, groups)
            return attend(*heads, mask=attention_mask, scale=scale).transpose(1, 2), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return checkpoint(
        _within, packing, query, key, value, window, scale, use_reentrant=False, preserve_rng_state=False
    ), None


def _within(
    packing: Packing, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None
) -> Tensor:
    """Attention within each sequence, packed in and out.

    It runs a second time in the backward pass, so that the packed vectors are all that is kept until then: not the
    padded ones, nor the keys and values repeated for each head, nor the weights. That is a small part of an LLM's work.

    A GPU takes the sequences as one padded batch, since it waits for launches; a CPU takes long ones one after the
    other, at a token efficiency of 0.4 four times as fast, and short ones as a batch too, since calls cost more than
    padding there.
    """
    groups = query.shape[1] // key.shape[1]
    heads = query, repeat_kv(key, groups), repeat_kv(value, groups)  # (1, H, P, d) each
    if query.device.type == "cpu" and query.shape[2] >= LONG * len(packing.lengths):
        sequences = zip(*(each.split(packing.lengths, 2) for each in heads), strict=True)
        return torch.cat([_causal(sequence, window, scale) for sequence in sequences], 2).transpose(1, 2)
    padded = [packing.unpack(each[0].transpose(0, 1)).transpose(1, 2) for each in heads]  # (B, H, L, d) each
    return packing.pack(_causal(padded, window, scale).transpose(1, 2))[None]


def _causal(heads: Iterable[Tensor], window: int | None, scale: float | None) -> Tensor:
    """Query, key and value (B, H, L, d): each position reads itself and those before it, at most ``window`` in all."""
    query, key, value = heads
    length = query.shape[2]
    local = _window_mask(length, window, query.device) if window is not None and length > window else None
    return attend(query, key, value, mask=local, causal=local is None, scale=scale)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(L, L): each position sees itself and the ``window`` - 1 before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def can_pack(model: Any) -> bool:
    """Whether ``model`` takes its attention from transformers' interface and uses nothing that `attention` lacks."""
    config = model.config.to_dict()
    caps = [config.get(name) for name in ("attn_logit_softcapping", "use_bidirectional_attention")]
    return bool(model._supports_attention_backend) and not any(caps)


def register() -> None:
    """Make `attention` known to transformers under the name `ATTENTION`."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
