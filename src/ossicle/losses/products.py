"""Large matrices on a CPU: products by the faster of the two libraries that PyTorch carries, memory in large pages."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 256  # of a product that are computed at once: they stay in the level-3 cache until they are used


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """x @ y.T of ``x`` (N, D) and ``y`` (M, D), which may have any strides: (N, M). Without a graph.

    In float32 on a CPU through oneDNN, whose kernels use AVX-512 wherever there is any. PyTorch itself takes MKL
    there, which on CPUs that are not Intel's keeps to AVX2, at half the speed. Sums are in float32 in both.
    ``torch.set_float32_matmul_precision("medium")`` lets oneDNN multiply in bfloat16 on CPUs with AMX; on others it
    changes nothing here.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
    return x @ y.T


def all_products(x: Tensor, y: Tensor) -> Tensor:
    """The same into memory of `roomy`, block by block."""
    if x.device.type != "cpu":
        return inner_products(x, y)
    products = roomy((len(x), len(y)), x.dtype, x.device)
    for rows, block in zip(products.split(BLOCK_ROWS), x.split(BLOCK_ROWS), strict=True):
        rows.copy_(inner_products(block, y))
    return products


def roomy(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor. On a CPU NumPy provides the memory, since it asks Linux for huge pages.

    PyTorch gets new memory from the system for every large tensor, in pages of 4 kB that are zeroed at the first touch:
    25 ms for 66 MB where huge pages take 5.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
