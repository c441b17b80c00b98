"""Scaled dot-product attention, by whichever program is fastest on the device.

Shape legend: B sequences or windows, H heads, L queries, S keys, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
SHORT = 128  # positions; beyond them plain products in float32 lose to the fused kernel


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

    In half precision on a CPU this is two plain matrix products, forward and backward two to four times as fast as
    the fused kernel of PyTorch 2.13; scores and weights are then rounded to half precision. So it is for short causal
    sequences in float32, where neither is clearly faster until ``torch.set_float32_matmul_precision("medium")``, under
    which the fused kernel takes three times as long (benchmarks/attention.py).
    """
    half = query.dtype in HALF or torch.is_autocast_enabled("cpu")
    if query.device.type != "cpu" or not (half or (causal and query.shape[2] <= SHORT)):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, dropout_p=dropout
        )
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    if mask is None:
        scores = query @ key.mT  # (B, H, L, S)
    else:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        if mask.dim() == 2:  # one pass less
            scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).mT).unflatten(0, query.shape[:2])
        else:
            scores = query @ key.mT + bias
    return F.dropout(scores.softmax(-1), dropout) @ value
