"""Measure how much memory a forward pass keeps for the backward pass, and how much a function takes at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

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


def peak_b(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes of tensors on ``device`` that exist at one time while ``run`` runs, beyond those before.

    On a CPU they are counted by torch.profiler, which takes longer than ``run`` itself.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler writes its own starts and ends to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes: list[int] = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))
