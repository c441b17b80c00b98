"""Augment the training data; the result depends on seed, sample and epoch, and not on batches or workers.

The collator changes the waveform: speed, then noise, then gain. `SpeechLLM.speech` masks the encoder's frames over time
and features and runs the encoder in training mode; it draws from the seeds that the collator puts into `Batch.seeds`.

Shape legend: B utterances, S audio samples, T encoder frames, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ossicle.audio import FloatArray, change_speed, read_audio
from ossicle.batch import Sample, Utterance
from ossicle.data.manifest import read_manifest

QUIET = 1e-8
"""Smallest power of noise that is divided by."""


class WaveformSettings(Protocol):
    """The settings that are read here; `ossicle.data.augment.AugmentConfig` has them."""

    @property
    def speed(self) -> list[float]: ...  # noqa: D102 - documented in `AugmentConfig`, as all of these
    @property
    def noise_snr_db(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def noise(self) -> list[str]: ...  # noqa: D102
    @property
    def gain_db(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def waveform_options(self) -> list[str]: ...  # noqa: D102


class Augmentation:
    """Change waveforms at random, from a seed per sample and epoch."""

    def __init__(self, config: WaveformSettings, *, seed: int) -> None:
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


def add_noise(waveform: FloatArray, noise: FloatArray, snr_db: float) -> FloatArray:
    """Add ``noise`` (S,), scaled to a signal-to-noise ratio of ``snr_db``; a silent waveform stays silent."""
    power, noise_power = np.mean(np.square(waveform)), np.mean(np.square(noise))
    noisy: FloatArray = waveform + noise * np.sqrt(power / np.maximum(noise_power, QUIET) / 10 ** (snr_db / 10))
    return noisy
