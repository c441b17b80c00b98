"""Scaled dot-product attention, by whichever program is fastest on the device.

Shape legend: B sequences or windows, H heads, L queries, S keys, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


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
    """Softmax attention: (B, H, L, d) for ``query`` (B, H, L, d), ``key`` and ``value`` (B, H, S, d).

    ``mask``, broadcast to (B, H, L, S), is True where a key may be read; ``causal`` is for L = S, without a mask.

    In half precision on a CPU this is two plain matrix products: the fused kernel of PyTorch 2.13 takes five times as
    long there, forward and backward (benchmarks/attention.py). Scores and weights are then rounded to half precision.
    """
    half = query.dtype in HALF or torch.is_autocast_enabled("cpu")
    if query.device.type != "cpu" or not half:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, dropout_p=dropout
        )
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT  # (B, H, L, S)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores + scores.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ value
