"""Augmentation of the training data: the same for a sample and an epoch, in any batch and on any number of workers.

Speed, noise and gain change the waveform, in this order, where it is collated. Masks over time and over features change
the encoder's frames, and the encoder's own training mode happens in it: both in `SpeechLLM.speech`, from the seeds that
the collator puts into `Batch.seeds`.

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

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Sample, Utterance
from ossicle.data.manifest import read_manifest
from ossicle.section import section

QUIET = 1e-8
Range = tuple[float, float]


@section
class AugmentConfig:
    """All off by default; in the development data always."""

    speed: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(default_factory=list)
    """Factors to choose from, e.g. [0.9, 1.0, 1.1]; the pitch moves along. ``data.max_batch_s`` counts the seconds
    before it."""
    noise_snr_db: Range | None = None
    """Lowest and highest ratio of speech to noise in dB, e.g. [5, 30]."""
    noise: list[str] = Field(default_factory=list)
    """Manifests of recordings to draw the noise from; without any it is white."""
    gain_db: Range | None = None
    """Lowest and highest gain in dB, e.g. [-10, 10]."""
    time_masks: int = Field(default=0, ge=0)
    """SpecAugment on the encoder's frames: stretches of time that are replaced by the utterance's mean frame."""
    time_mask_s: float = Field(default=0.2, gt=0)
    """Longest stretch in seconds; each is drawn from 0 to this."""
    feature_masks: int = Field(default=0, ge=0)
    """Bands of the frames' features that are replaced by their mean over the utterance."""
    feature_mask_share: float = Field(default=0.1, gt=0, le=1)
    """Widest band as a share of the features."""
    train_mode_encoder: bool = False
    """Run the encoder in its training mode, with its dropout, layer drop and SpecAugment, as the official code does."""

    @property
    def waveform_options(self) -> list[str]:
        """Those that are on and change waveforms."""
        on = {"speed": self.speed, "noise_snr_db": self.noise_snr_db, "gain_db": self.gain_db}
        return [name for name, value in on.items() if value]

    @property
    def model_options(self) -> list[str]:
        """Those that are on and change what the encoder makes of waveforms."""
        masks = {"time_masks": self.time_masks, "feature_masks": self.feature_masks}
        on = {**masks, "train_mode_encoder": self.train_mode_encoder}
        return [name for name, value in on.items() if value]

    def build(self, *, seed: int) -> Augmentation | None:
        """The augmentation of waveforms and the seeds of the rest, or None where all is off."""
        return Augmentation(self, seed=seed) if self.waveform_options or self.model_options else None


class Augmentation:
    """What the collator does to waveforms."""

    def __init__(self, config: AugmentConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self.noise = [sample for manifest in config.noise for sample in read_manifest(Path(manifest))]

    def seed_of(self, sample: Sample, epoch: int) -> int:
        """Of everything that is drawn for ``sample`` in ``epoch``."""
        name = f"{self.seed}/{sample.source}/{sample.id}/{epoch}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "little")

    def __call__(self, utterance: Utterance, epoch: int) -> Utterance:
        """The utterance with another waveform; one that comes as frames stays as it is."""
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

    def _noise(self, length: int, random: np.random.Generator) -> np.ndarray:
        """(``length``,) samples of noise, from a random place of a random recording, repeated where it is too short."""
        if not self.noise:
            return random.standard_normal(length)
        sample = self.noise[random.integers(len(self.noise))]
        recording = read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s)
        return np.resize(np.roll(recording, -random.integers(len(recording))), length)


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """``waveform`` (S,) played ``factor`` times as fast: about S / ``factor`` samples."""
    return waveform if factor == 1.0 else soxr.resample(waveform, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add ``noise`` (S,) so loud that the speech has ``snr_db`` times its power (in dB); silence stays silent."""
    power, noise_power = np.mean(np.square(waveform)), np.mean(np.square(noise))
    return waveform + noise * np.sqrt(power / max(noise_power, QUIET) / 10 ** (snr_db / 10))
