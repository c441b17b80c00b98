"""Augment the training data; the result depends on seed, sample and epoch, and not on batches or workers.

The collator changes the waveform: speed, then noise, then gain. `SpeechLLM.speech` masks the encoder's frames over time
and features and runs the encoder in training mode; it draws from the seeds that the collator puts into `Batch.seeds`.

Shape legend: B utterances, S audio samples, T encoder frames, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import soxr
import torch
from pydantic import Field

from ossicle.audio import SAMPLE_RATE_HZ, FloatArray, read_audio
from ossicle.batch import Sample, Utterance
from ossicle.data.manifest import read_manifest
from ossicle.section import section

QUIET = 1e-8
"""Smallest power of noise that is divided by."""
Range = tuple[float, float]


@section
class AugmentConfig:
    """Augmentation of the training data. Everything is off by default; development data is never augmented."""

    speed: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(default_factory=list)
    """Speed factors of which one is drawn per utterance, such as [0.9, 1.0, 1.1]. The pitch changes too. Durations for
    ``data.max_batch_s`` are those before the change. Default: none."""
    noise_snr_db: Range | None = None
    """Lowest and highest signal-to-noise ratio in dB, such as [5, 30]; one is drawn per utterance. Default: no
    noise."""
    noise: list[str] = Field(default_factory=list)
    """Manifests of noise recordings; one is drawn per utterance. Default: white noise."""
    gain_db: Range | None = None
    """Lowest and highest gain in dB, such as [-10, 10]; one is drawn per utterance. Default: no gain."""
    time_masks: int = Field(default=0, ge=0)
    """Number of time masks per utterance (SpecAugment). The masked encoder frames are replaced by the utterance's mean
    frame."""
    time_mask_s: float = Field(default=0.2, gt=0)
    """Length of the longest time mask in seconds; each length is drawn between 0 and this."""
    feature_masks: int = Field(default=0, ge=0)
    """Number of feature masks per utterance. A masked band of features is replaced by its mean over the utterance."""
    feature_mask_share: float = Field(default=0.1, gt=0, le=1)
    """Width of the widest feature mask, as a share of all features."""
    train_mode_encoder: bool = False
    """Run the encoder in training mode, with its own dropout, layer drop and SpecAugment, as the official code does."""

    @property
    def waveform_options(self) -> list[str]:
        """Return the names of the options that are on and change waveforms."""
        on = {"speed": self.speed, "noise_snr_db": self.noise_snr_db, "gain_db": self.gain_db}
        return [name for name, value in on.items() if value]

    @property
    def model_options(self) -> list[str]:
        """Return the names of the options that are on and change the encoder's frames."""
        masks = {"time_masks": self.time_masks, "feature_masks": self.feature_masks}
        on = {**masks, "train_mode_encoder": self.train_mode_encoder}
        return [name for name, value in on.items() if value]

    def build(self, *, seed: int) -> Augmentation | None:
        """Return the augmentation of waveforms, which also makes the seeds of the others; None if all are off."""
        return Augmentation(self, seed=seed) if self.waveform_options or self.model_options else None


class Augmentation:
    """Change waveforms at random, from a seed per sample and epoch."""

    def __init__(self, config: AugmentConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self.noise = [sample for manifest in config.noise for sample in read_manifest(Path(manifest))]

    def seed_of(self, sample: Sample, epoch: int) -> int:
        """Return the seed of everything that is drawn for ``sample`` in ``epoch``."""
        name = f"{self.seed}/{sample.source}/{sample.id}/{epoch}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "little")

    def __call__(self, utterance: Utterance, epoch: int) -> Utterance:
        """Return the utterance with its augmented waveform; an utterance that holds frames is returned unchanged."""
        if utterance.waveform is None or not self.config.waveform_options:
            return utterance
        random = np.random.default_rng(self.seed_of(utterance.sample, epoch))
        waveform = utterance.waveform.numpy()
        if self.config.speed:
            waveform = change_speed(waveform, float(random.choice(self.config.speed)))
        if self.config.noise_snr_db is not None:
            waveform = add_noise(
                waveform, self._noise(len(waveform), random), random.uniform(*self.config.noise_snr_db)
            )
        if self.config.gain_db is not None:
            waveform = waveform * 10 ** (random.uniform(*self.config.gain_db) / 20)
        return replace(utterance, waveform=torch.from_numpy(waveform.astype(np.float32)))

    def _noise(self, length: int, random: np.random.Generator) -> FloatArray:
        """Return ``length`` samples of noise from a random place of a random recording, repeated if it is short."""
        if not self.noise:
            return random.standard_normal(length)
        sample = self.noise[random.integers(len(self.noise))]
        recording = read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s)
        return np.resize(np.roll(recording, -random.integers(len(recording))), length)


def change_speed(waveform: FloatArray, factor: float) -> FloatArray:
    """Play ``waveform`` (S,) ``factor`` times as fast; the result has about S / ``factor`` samples."""
    if factor == 1.0:
        return waveform
    faster: FloatArray = soxr.resample(waveform, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)
    return faster


def add_noise(waveform: FloatArray, noise: FloatArray, snr_db: float) -> FloatArray:
    """Add ``noise`` (S,), scaled to a signal-to-noise ratio of ``snr_db``; a silent waveform stays silent."""
    power, noise_power = np.mean(np.square(waveform)), np.mean(np.square(noise))
    noisy: FloatArray = waveform + noise * np.sqrt(power / np.maximum(noise_power, QUIET) / 10 ** (snr_db / 10))
    return noisy
