"""Packing: the sequences of a batch laid end to end, so that the LLM computes nothing for padding.

Random batches of real utterances are more than half padding. Packed, every linear layer and norm sees only real
positions; attention alone goes back to one row per sequence, where a causal mask is all that is needed since padding
on the right comes after every real position.

Shape legend: B sequences, L longest of them, P real positions of the whole batch, H heads, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ossicle.models.attention import attend

ATTENTION = "ossicle_packed"


@dataclass(frozen=True)
class Packing:
    """Where the positions of each sequence are."""

    mask: Tensor  # (B, L) bool
    index: Tensor  # (P,) position of each real position in the flattened (B * L)

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """Pack by ``mask`` (B, L), whose padding is on the right."""
        return cls(mask, mask.flatten().nonzero().squeeze(1))

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
        return rows.index_copy(0, self.index, values).unflatten(0, self.mask.shape)

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
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    groups = query.shape[1] // key.shape[1]
    q, k, v = (
        packing.unpack(heads[0].transpose(0, 1)).transpose(1, 2)  # (B, H, L, d)
        for heads in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )
    window = options.get("sliding_window")
    local = _window_mask(q.shape[2], window, q.device) if window is not None and q.shape[2] > window else None
    out = attend(q, k, v, mask=local, causal=local is None, scale=options.get("scaling"))
    return packing.pack(out.transpose(1, 2))[None], None


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
