"""Store the weights of a trained projector in 8 bits, so that a package can carry them.

A matrix is stored as integers from -127 to 127 and one scale per row (absmax quantisation), in two tensors: NAME and
NAME.scale. Other tensors are stored in bfloat16. Weights are float32 again as soon as they are read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"
STEPS = 127


def narrowed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors to store for the weights ``tensors``."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            stored[name] = tensor.to(torch.bfloat16)
            continue
        scale = tensor.float().flatten(1).abs().amax(1).clamp_min(1e-12) / STEPS  # (rows,)
        by_row = scale.view(-1, *[1] * (tensor.ndim - 1))
        stored[name], stored[name + SCALE] = (tensor / by_row).round().to(torch.int8), scale
    return stored


def widened(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in float32 of ``stored`` tensors; those without a scale stay as they are."""
    weights = {}
    for name, tensor in stored.items():
        if (scale := stored.get(name + SCALE)) is not None:
            weights[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif name.removesuffix(SCALE) == name or name.removesuffix(SCALE) not in stored:
            weights[name] = tensor
    return weights
