"""Draw dropout masks from the random state of the process, or from the utterances.

By default a mask depends on the random state of its process and on the shape of the padded batch. Inside `by_utterance`
a mask is a hash of the seed, the step, the id of the utterance, the number of the call and the place of the element.
Then neither the number of processes nor the padding nor the device changes what a step computes.

Shape legend: B utterances, R rows of a tensor, V windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.batch import Sample

_ROUNDS = ((16, -0x7A143595), (13, -0x3D4D51CB))
"""Shifts and factors of the mixing function of MurmurHash3 (Appleby), as signed numbers of 32 bits."""
_STRIDES = (0x3C6EF373, 0x1B873593, 0x27D4EB2F, 0x165667B1)
"""Steps between the places of a row, one for each dimension after the first."""
_CALL = 0x632BE5AB
"""Step between the calls of a forward pass."""


@dataclass
class _Step:
    """Where the masks of a step come from."""

    name: str
    rows: Tensor | None = None
    """One key for each row (R,) int32, or None outside `of_utterances`."""
    calls: int = 0


_STEP: ContextVar[_Step | None] = ContextVar("step", default=None)


@contextmanager
def by_utterance(seed: int, step: int) -> Iterator[None]:
    """Draw the masks of a block from its utterances, for a ``seed`` of the run and the number of the ``step``."""
    token = _STEP.set(_Step(f"{seed}/{step}"))
    try:
        yield
    finally:
        _STEP.reset(token)


@contextmanager
def of_utterances(samples: Sequence[Sample], device: torch.device) -> Iterator[None]:
    """Say whose rows the tensors of a block have: row r is of ``samples[r]``. Equal blocks draw equal masks."""
    step = _STEP.get()
    if step is None:
        yield
        return
    step.calls, step.rows = 0, _keys([f"{step.name}/{sample.id}" for sample in samples], device)
    try:
        yield
    finally:
        step.rows = None


@contextmanager
def of_windows(places: Sequence[Tensor]) -> Iterator[None]:
    """Say, inside `of_utterances`, that the rows are windows: ``places`` are utterances and numbers, each (V,)."""
    step = _STEP.get()
    if step is None or step.rows is None:
        yield
        return
    outer = step.rows
    step.rows = _mixed(outer[places[0]] + places[1].to(torch.int32) * _STRIDES[0])
    try:
        yield
    finally:
        step.rows = outer


def is_by_utterance() -> bool:
    """Return True inside `of_utterances`, where PyTorch's own dropout must not be called."""
    step = _STEP.get()
    return step is not None and step.rows is not None


def dropout(x: Tensor, p: float, training: bool, *, shared: bool = False) -> Tensor:
    """Return ``x`` (R, ...) with elements set to zero with probability ``p``, and the others scaled by 1 / (1 - p).

    With ``shared``, ``x`` has no rows: all utterances of the step share its mask.
    """
    step = _STEP.get()
    if not training or p == 0 or step is None or step.rows is None:
        return F.dropout(x, p, training)
    step.calls += 1
    rows = _keys([step.name], x.device) if shared else step.rows
    shape = (1, *x.shape) if shared else x.shape
    places = _mixed(rows + step.calls * _CALL).view(-1, *[1] * (len(shape) - 1))
    for dim, (size, stride) in enumerate(zip(shape[1:], _STRIDES[: len(shape) - 1], strict=True), 1):
        along = torch.arange(size, dtype=torch.int32, device=x.device) * stride
        places = places + along.view(-1, *[1] * (len(shape) - 1 - dim))
    kept = _mixed(places) >= min(round(p * 2**32), 2**32 - 1) - 2**31
    return x * (kept.view(x.shape).to(x.dtype) / (1 - p))


def _keys(names: list[str], device: torch.device) -> Tensor:
    digests = [hashlib.blake2b(name.encode(), digest_size=4).digest() for name in names]
    return torch.tensor([int.from_bytes(one, "little", signed=True) for one in digests], dtype=torch.int32).to(device)


def _mixed(x: Tensor) -> Tensor:
    """Return a hash of each number of ``x``, int32, in which every bit depends on every bit."""
    for shift, factor in _ROUNDS:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 16)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (32 - bits)) - 1)  # without copies of the sign
