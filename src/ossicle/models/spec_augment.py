"""SpecAugment on the encoder's frames, and the encoder's own training mode, both drawn from the seeds of a batch.

Shape legend: B utterances, T encoder frames, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import nn

from ossicle.batch import Padded

TRAIN_MODE_LEAST_S = 0.5
"""A batch without a longer utterance goes through the encoder as in evaluation: HuBERT's SpecAugment masks ten frames
at once and fails where there are fewer."""


class SpecAugment(Protocol):
    """The settings that the model reads; `ossicle.data.augment.AugmentConfig` has them."""

    @property
    def time_masks(self) -> int:
        """Number of masked stretches of time."""

    @property
    def time_mask_s(self) -> float:
        """Longest stretch in seconds."""

    @property
    def feature_masks(self) -> int:
        """Number of masked bands of features."""

    @property
    def feature_mask_share(self) -> float:
        """Widest band as a share of the features."""

    @property
    def train_mode_encoder(self) -> bool:
        """Run the encoder in its training mode."""


def mask_frames(frames: Padded, seeds: list[int], config: SpecAugment, *, frame_rate_hz: float) -> Padded:
    """SpecAugment (Park et al., 2019) on ``frames`` (B, T, D), each utterance by its own of ``seeds``.

    What is masked becomes the mean of the utterance's valid frames, not zero: frames are not centred.
    """
    values, width = frames.values, frames.values.shape[-1]
    lengths = frames.mask.sum(1).tolist()
    longest_time = round(config.time_mask_s * frame_rate_hz)
    longest_band = max(1, round(config.feature_mask_share * width))
    hidden = torch.zeros(values.shape, dtype=torch.bool)  # (B, T, D)
    for row, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
        random = np.random.default_rng([seed, 1])  # not the stream that the waveform was changed by
        for _ in range(config.time_masks):
            start, stop = _stretch(random, length, longest_time)
            hidden[row, start:stop] = True
        for _ in range(config.feature_masks):
            start, stop = _stretch(random, width, longest_band)
            hidden[row, :, start:stop] = True
    weights = frames.mask[..., None].to(values.dtype)
    mean = (values * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)  # (B, 1, D)
    return Padded(torch.where(hidden.to(values.device), mean, values), frames.mask)


def _stretch(random: np.random.Generator, length: int, longest: int) -> tuple[int, int]:
    """From 0 to ``longest`` of ``length`` places, anywhere."""
    size = int(random.integers(min(longest, length) + 1))
    start = int(random.integers(length - size + 1))
    return start, start + size


@contextmanager
def train_mode(model: nn.Module, seeds: list[int]) -> Iterator[None]:
    """Put ``model`` into training mode with random states of their own, drawn from ``seeds``, and back again.

    Both states are needed: transformers draws dropout from torch and the masks of SpecAugment from numpy. Statistics of
    batch norms stay as they are.
    """
    seed = int.from_bytes(hashlib.blake2b(repr(seeds).encode(), digest_size=4).digest(), "little")
    before = np.random.get_state()
    used = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(used)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        for module in model.modules():
            module.training = not isinstance(module, nn.BatchNorm1d)
        try:
            yield
        finally:
            model.eval()
            np.random.set_state(before)
