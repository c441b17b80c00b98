"""Apply SpecAugment to encoder frames, or run the encoder in its training mode, with the seeds of a batch.

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

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Padded
from ossicle.models.encoder import Encoder

TRAIN_MODE_LEAST_S = 0.5
"""Length in seconds that the longest utterance of a batch must have for the encoder's training mode. HuBERT's
SpecAugment masks ten frames at once and fails on shorter input."""


class SpecAugment(Protocol):
    """Settings that the model reads. `ossicle.data.augment.AugmentConfig` has them."""

    @property
    def time_masks(self) -> int:
        """Number of time masks per utterance."""

    @property
    def time_mask_s(self) -> float:
        """Longest time mask in seconds."""

    @property
    def feature_masks(self) -> int:
        """Number of feature masks per utterance."""

    @property
    def feature_mask_share(self) -> float:
        """Widest feature mask, as a fraction of the width of a frame."""

    @property
    def train_mode_encoder(self) -> bool:
        """True to run the encoder in its training mode."""


def mask_frames(frames: Padded, seeds: list[int], config: SpecAugment, *, frame_rate_hz: float) -> Padded:
    """Apply SpecAugment (Park et al., 2019) to ``frames`` (B, T, D), with one of ``seeds`` for each utterance.

    Masked values become the mean of the utterance's valid frames. Zero would be far from it, since frames are not
    centred.
    """
    values, width = frames.values, frames.values.shape[-1]
    lengths = frames.mask.sum(1).tolist()
    longest_time = round(config.time_mask_s * frame_rate_hz)
    longest_band = max(1, round(config.feature_mask_share * width))
    hidden = torch.zeros(values.shape, dtype=torch.bool)  # (B, T, D)
    for row, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
        random = np.random.default_rng([seed, 1])  # another stream than the augmentation of the waveform
        for _ in range(config.time_masks):
            start, stop = _interval(random, length, longest_time)
            hidden[row, start:stop] = True
        for _ in range(config.feature_masks):
            start, stop = _interval(random, width, longest_band)
            hidden[row, :, start:stop] = True
    weights = frames.mask[..., None].float()
    mean = (values.float() * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)  # (B, 1, D)
    return Padded(torch.where(hidden.to(values.device), mean.to(values.dtype), values), frames.mask)


def _interval(random: np.random.Generator, length: int, longest: int) -> tuple[int, int]:
    """Draw an interval of 0 to ``longest`` positions within ``length``: its start and stop."""
    size = int(random.integers(min(longest, length) + 1))
    start = int(random.integers(length - size + 1))
    return start, start + size


@contextmanager
def train_mode(model: nn.Module, seeds: list[int]) -> Iterator[None]:
    """Put ``model`` into training mode inside the block, with random states that depend on ``seeds`` alone.

    Both states are set because transformers draws dropout from PyTorch and the masks of SpecAugment from NumPy. The
    statistics of batch norms do not change.
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


def encode_in_train_mode(encoder: Encoder, waveforms: Padded, seeds: list[int]) -> Padded:
    """Encode ``waveforms`` (B, S) in `train_mode`, or in evaluation mode if none lasts `TRAIN_MODE_LEAST_S`."""
    frames: Padded
    if waveforms.values.shape[1] < TRAIN_MODE_LEAST_S * SAMPLE_RATE_HZ:
        frames = encoder(waveforms)
        return frames
    with train_mode(encoder.model, seeds):
        frames = encoder(waveforms)
    return frames
