"""Gather negatives across processes: each process compares the texts of all processes with its own speech.

Each process computes its columns of the similarity matrix. The processes then exchange the frozen text side, which
needs no gradient, and the columns of scalars, which do. In a single process every function returns its argument.

Shape legend: B rows of this process, B_all rows of all processes in the order of their ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_ragged(values: Tensor, fill: float = 0.0) -> Tensor:
    """Join the rows (B, L, ...) of all processes to (B_all, longest L, ...), padded with ``fill``; no gradient."""
    if world_size() == 1:
        return values
    sizes = _sizes(values.shape[:2], values.device)  # (processes, 2)
    rows, length = sizes.amax(0).tolist()
    padding = (0, 0) * (values.ndim - 2) + (0, length - values.shape[1], 0, rows - values.shape[0])
    parts = _all_gather(F.pad(values.detach(), padding, value=fill))
    return torch.cat([part[:count] for part, count in zip(parts, sizes[:, 0].tolist(), strict=True)])


def gather_rows(values: Tensor) -> Tensor:
    """Join the rows (B, D) of all processes to (B_all, D); no gradient."""
    return gather_ragged(values[:, None])[:, 0]


def gather_columns(columns: Tensor) -> Tensor:
    """Join the columns (B_all, B) of all processes to (B_all, B_all).

    The gradient of a column is summed over the processes. If each process computes the same loss of the whole matrix
    and the trainer averages gradients, the result equals that of one process on the joined batch.
    """
    if world_size() == 1:
        return columns
    function: Any = _GatherColumns  # torch gives `Function.apply` no types
    joined: Tensor = function.apply(columns)
    return joined


class _GatherColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> Tensor:
        counts = _sizes(columns.shape[1:], columns.device)[:, 0].tolist()
        rank = dist.get_rank()
        ctx.start, ctx.count = sum(counts[:rank]), counts[rank]
        parts = _all_gather(F.pad(columns, (0, max(counts) - columns.shape[1])))
        return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[:, ctx.start : ctx.start + ctx.count]


def _sizes(shape: torch.Size, device: torch.device) -> Tensor:
    return torch.stack(_all_gather(torch.tensor(shape, device=device)))


def _all_gather(values: Tensor) -> list[Tensor]:
    sent = values.contiguous().to(torch.uint8) if values.dtype == torch.bool else values.contiguous()
    parts = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(parts, sent)
    return [part.to(values.dtype) for part in parts]
