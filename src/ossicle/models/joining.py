"""Ragged sequences of vectors put together: the parts of a chat turn, and text and speech in turn.

Shape legend: B sequences, L positions, K spans of speech, M speech tokens, N text tokens, D width of the LLM.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ossicle.batch import Mixed, Padded


def join(parts: list[Padded], *, pad: Literal["left", "right"] = "right") -> tuple[Padded, Tensor]:
    """Concatenate ragged sequences (B, L_k, D) along time with all padding on one side: (B, L, D).

    Also returns the order (B, L) in which positions of the plain concatenation were taken.
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
    """Put each span of ``spans`` (K, M, D) before the token of ``text`` (B, N, D) where it starts: (B, L, D).

    Tokens that ``text`` masks are left out. Also returns the index (B, L) of each position in N, -1 for speech and
    padding.
    """
    batch, length = text.mask.shape
    device = text.mask.device
    # A position's key is the token it holds, or the first of those it stands for, counted through the whole batch.
    starts = (mixed.rows * length + mixed.starts)[:, None].expand_as(spans.mask)[spans.mask]
    tokens = torch.arange(batch * length, device=device).view(batch, length)[text.mask]
    keys = torch.cat([starts, tokens])  # (P,) speech first: it stays before a token of the same key
    order = keys.argsort(stable=True)
    values = torch.cat([spans.values[spans.mask].to(text.values.dtype), text.values[text.mask]])[order]
    lengths = torch.bincount(keys // length, minlength=batch)  # (B,)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]  # (B, L)
    held = torch.cat([torch.full_like(starts, -1), tokens % length])[order]
    joined = values.new_zeros(*mask.shape, values.shape[-1]).masked_scatter(mask[..., None], values)
    return Padded(joined, mask), torch.full_like(mask, -1, dtype=torch.long).masked_scatter(mask, held)
