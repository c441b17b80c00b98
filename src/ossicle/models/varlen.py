"""Variable-length attention on CUDA: the sequences of a packed batch in one kernel, without padding.

Shape legend: P real positions of the whole batch, H heads, d width of a head, B sequences.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor


def is_available(query: Tensor) -> bool:
    """Return True where the kernel takes ``query``: half precision on a CUDA device, in a PyTorch that has it."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and "window_size" in _kernel()[1]


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, window: int | None, scale: float | None
) -> Tensor:
    """Return causal attention within each sequence, over at most ``window`` positions if given: (1, P, H, d).

    ``query`` is (1, H, P, d); ``key`` and ``value`` are (1, H_kv, P, d); ``mask`` (B, L) has the lengths of the
    sequences and stays on the device, so that nothing waits for the GPU.
    """
    kernel, parameters = _kernel()
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0)}
    if "enable_gqa" in parameters:
        options["enable_gqa"] = groups > 1
    elif groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    if scale is not None:
        options["scale"] = scale
    ends = mask.sum(1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    packed = [each[0].transpose(0, 1) for each in (query, key, value)]  # (P, H, d)
    attended: Tensor = kernel(*packed, starts, starts, mask.shape[1], mask.shape[1], **options)
    return attended[None]


@cache
def _kernel() -> tuple[Any, frozenset[str]]:
    """Return PyTorch's function and the names of its arguments, which differ between releases."""
    try:
        from torch.nn.attention import varlen
    except ImportError:  # PyTorch before 2.10
        return None, frozenset()
    return varlen.varlen_attn, frozenset(inspect.signature(varlen.varlen_attn).parameters)
