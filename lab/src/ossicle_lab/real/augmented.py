"""Write changed copies of recordings as further training data: at other speeds, and in other rooms with noise.

A frozen encoder gives other frames for the same words then. Masks on cached frames cannot do that. Sources: speed
perturbation (Ko et al., 2015), and augmentation by reverberation and noise (Ko et al., 2017), here with generated rooms
and noises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from zlib import crc32

import numpy as np
import soundfile
import soxr

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.files import atomic
from ossicle.progress import Progress

SPEED = (0.82, 1.18)
"""Range of the factor of tempo and pitch of a perturbed copy."""
MOST_FILTERS, FILTER_HZ, FILTER_DB = 3, (150.0, 6000.0), 12.0
"""Most resonances of a copy, their range, and the largest gain or loss of each."""
ROOM_SHARE, DECAY_S, ROOM_LEVEL = 0.4, (0.08, 0.45), (0.2, 0.9)
"""Share of copies in a room, the range of the time in which its echo falls by 60 dB, and of the echo's level."""
NOISE_SHARE, NOISE_DB = 0.6, (8.0, 28.0)
"""Share of copies with noise, and the range of its distance to the speech."""
PEAK = (0.15, 0.9)
FFT_BLOCK = 4096
"""Fourier transforms have a multiple of so many samples, because a length with large prime factors is slow."""

Waveform = np.ndarray
"""(S,) float32 mono at 16 kHz."""


class Change(Protocol):
    """A way to change a recording."""

    @property
    def name(self) -> str:
        """Name of the change in the ids and file names of the copies."""
        ...

    def __call__(self, waveform: Waveform, seed: int) -> Waveform:
        """Return the changed ``waveform``. What is random follows from ``seed``."""
        ...


@dataclass(frozen=True)
class Speed:
    """Plays a recording faster or slower, which changes tempo and pitch; 1.1 is a tenth faster."""

    factor: float

    @property
    def name(self) -> str:
        """The factor."""
        return f"{self.factor:g}"

    def __call__(self, waveform: Waveform, seed: int) -> Waveform:
        """Return ``waveform`` at another speed."""
        return np.asarray(soxr.resample(waveform, SAMPLE_RATE_HZ * self.factor, SAMPLE_RATE_HZ))


@dataclass(frozen=True)
class Perturbation:
    """Changes speed, timbre, room, noise and level at random; equal numbers give equal copies."""

    number: int

    @property
    def name(self) -> str:
        """The number of the copy."""
        return f"p{self.number}"

    def __call__(self, waveform: Waveform, seed: int) -> Waveform:
        """Return a perturbed copy of ``waveform``."""
        rng = np.random.default_rng([self.number, seed])
        copy = Speed(rng.uniform(*SPEED))(waveform, seed)
        for _ in range(rng.integers(MOST_FILTERS, endpoint=True)):
            hertz = np.exp(rng.uniform(*np.log(FILTER_HZ)))
            copy = resonance(copy, hertz, rng.uniform(-FILTER_DB, FILTER_DB), width=rng.uniform(0.5, 2))
        if rng.random() < ROOM_SHARE:
            copy = in_room(copy, rng)
        if rng.random() < NOISE_SHARE:
            copy = with_noise(copy, rng)
        peak = max(float(np.abs(copy).max(initial=0.0)), 1e-6)
        return (copy * (rng.uniform(*PEAK) / peak)).astype(np.float32)


def resonance(waveform: Waveform, hertz: float, gain_db: float, *, width: float) -> Waveform:
    """Raise or lower the sound around ``hertz``, by ``gain_db`` at most and over about ``width`` octaves.

    The whole spectrum is multiplied by a bell over the logarithm of the frequency, without a change of phase.
    """
    size = _padded(len(waveform))
    octaves = np.log2(np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ).clip(1.0) / hertz)
    bell = np.exp(-0.5 * (octaves / width) ** 2)
    return np.fft.irfft(np.fft.rfft(waveform, size) * 10 ** (gain_db * bell / 20))[: len(waveform)]


def in_room(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Add a decaying echo of noise, which is how a room with many walls sounds."""
    decay_s = rng.uniform(*DECAY_S)
    time_s = np.arange(int(decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    echo = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / decay_s)
    echo *= rng.uniform(*ROOM_LEVEL) / np.linalg.norm(echo)
    echo[0] = 1.0  # the sound itself
    size = _padded(len(waveform) + len(echo) - 1)
    return np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(echo, size))[: len(waveform)]


def with_noise(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Add noise whose power falls with frequency: not at all (white) up to its square (brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(_padded(len(waveform))))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum)[: len(waveform)]
    ratio = np.linalg.norm(waveform) / max(float(np.linalg.norm(noise)), 1e-9)
    return waveform + noise * ratio * 10 ** (-rng.uniform(*NOISE_DB) / 20)


def _padded(samples: int) -> int:
    return -(-samples // FFT_BLOCK) * FFT_BLOCK


def write_copies(manifest: Path, folder: Path, changes: Sequence[Change], *, jobs: int | None = None) -> list[Sample]:
    """Write a copy of each recording of ``manifest`` by each of ``changes`` to ``folder``, and return the copies.

    A second call writes what is missing. Recordings that cannot be read have no copy. Copies of the same change follow
    each other.

    Args:
        manifest: manifest of recordings with transcripts.
        folder: folder of the copies, FLAC at 16 kHz.
        changes: what to do to a recording.
        jobs: number of threads; None for Python's default.
    """
    dataset = SpeechDataset(read_manifest(manifest), on_error="skip")
    folder.mkdir(parents=True, exist_ok=True)

    def write(index: int) -> list[Sample]:
        sample, waveform = dataset.samples[index], None
        named = hashlib.sha256(repr((str(sample.audio), sample.start_s, sample.end_s)).encode()).hexdigest()[:16]
        seed = crc32(sample.id.encode())  # of the recording, not of its place: the manifest may grow
        copies = []
        for change in changes:
            path = folder / f"{named}-{change.name}.flac"
            if not path.is_file():
                if waveform is None and (waveform := getattr(dataset[index], "waveform", None)) is None:
                    return []
                with atomic(path) as partial:
                    soundfile.write(partial, change(waveform.numpy(), seed), SAMPLE_RATE_HZ, format="FLAC")
            seconds = soundfile.info(path).duration
            changed = {"id": f"{sample.id}@{change.name}", "audio": path.resolve(), "duration_s": seconds}
            copies.append(replace(sample, **changed, start_s=0.0, end_s=None))
        return copies

    count, found = len(dataset.samples), []
    with Progress("changing recordings", count, unit="recordings") as progress, ThreadPoolExecutor(jobs) as pool:
        for copies in pool.map(write, range(count)):
            progress.advance(1)
            found += [copies] if copies else []
    return [copy for of_change in zip(*found, strict=True) for copy in of_change]
