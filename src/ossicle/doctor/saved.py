"""Measure how much memory a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def run_and_count(forward: Callable[[], T], model: nn.Module) -> tuple[T, int]:
    """Return the result of ``forward`` and the bytes that autograd saves for it, without those of ``model`` itself."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # keeps the tensors alive, so that no address is used twice
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    return result, sum(sizes.values())
