"""Waveforms and files that the tests of audio share."""

from pathlib import Path

import numpy as np
import soundfile


def chirp(duration_s: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    """Return a tone that rises from 200 to 1400 Hz in a minute, so that every moment is different."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    wave = 0.3 * np.sin(2 * np.pi * (200 + 10 * time_s) * time_s).astype(np.float32)
    return np.repeat(wave[:, None], channels, axis=1)  # (frames, channels)


def write(path: Path, wave: np.ndarray, rate_hz: int, subtype: str | None = None) -> Path:
    # Write blocks, because libsndfile 1.2 overruns its stack when it encodes a minute of Vorbis at once.
    container = "OGG" if path.suffix == ".opus" else None
    with soundfile.SoundFile(path, "w", rate_hz, wave.shape[1], subtype=subtype, format=container) as file:
        for start in range(0, len(wave), 4096):
            file.write(wave[start : start + 4096])
    return path


def assert_same_sound(heard: np.ndarray, expected: np.ndarray) -> None:
    """Assert that the waveforms differ only by coding noise; a shift by a millisecond would fail."""
    assert heard.shape == expected.shape
    inner = slice(200, -200)  # the resampler's edges
    assert np.abs(heard[inner] - expected[inner]).max() < 0.05
