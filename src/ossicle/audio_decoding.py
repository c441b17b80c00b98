"""Decode a segment of an open audio file to mono, and check its samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from ossicle.audio_headers import truncated
from ossicle.errors import AudioError

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[Any]

PREROLL_S = 1.0
"""Seconds that are decoded before a segment and discarded. After a seek, MP3 needs bits of earlier frames (0.12 s are
wrong), and Opus needs 0.08 s to converge."""

LOUDEST = 100.0
"""Largest absolute sample that is read; full scale is 1. Integers that were stored as floats exceed it."""

CANCELLED = 0.1
"""Power of the average of all channels, relative to that of independent channels of the same levels, below which the
channels cancel each other."""


def segment_frames(
    file: soundfile.SoundFile, path: str | Path, start_s: float, end_s: float | None, tolerance_s: float
) -> tuple[int, int]:
    """Return the first and the stop frame of a segment, which may end ``tolerance_s`` after the file.

    Raises `AudioError` if the segment is not inside the file.
    """
    duration_s = file.frames / file.samplerate
    stop_s = duration_s if end_s is None else end_s
    if not 0 <= start_s < min(stop_s, duration_s) or stop_s > duration_s + tolerance_s:
        raise AudioError(
            f"{path}: the segment {start_s}-{stop_s} s is not inside the file, which lasts {duration_s:.2f} s"
        )
    return round(start_s * file.samplerate), min(round(stop_s * file.samplerate), file.frames)


def read_mono(file: soundfile.SoundFile, path: str | Path, start: int, stop: int, tolerance_s: float) -> FloatArray:
    """Read the frames ``start`` to ``stop`` and average the channels, or take the loudest if they cancel each other.

    Decoding starts earlier, so that the first frames are correct.
    """
    first = max(0, start - round(PREROLL_S * file.samplerate))
    if first:
        file.seek(first)
    try:
        frames = file.read(stop - first, dtype="float32", always_2d=True)[start - first :]  # (frames, channels)
    except MemoryError as error:
        what = f"{(stop - first) / file.samplerate:.0f} s in {file.channels} channels"
        raise AudioError(f"{path}: there is no memory for {what}; read it in segments (start_s, end_s)") from error
    if stop - start - len(frames) > tolerance_s * file.samplerate:
        raise AudioError(truncated(path, stop / file.samplerate, (start + len(frames)) / file.samplerate))
    _check_levels(frames, path)
    return mix_down(frames, path)


def mix_down(frames: FloatArray, name: str | Path) -> FloatArray:
    """Return the average (frames,) of the channels of ``frames`` (frames, channels), or the loudest if they cancel.

    The latter gives a warning, which begins with ``name``.
    """
    mono: FloatArray = frames.mean(axis=1)
    if (loudest := cancelling(frames, mono)) is not None:
        logger.warning("%s: its channels cancel each other (inverted phase); channel %d is read", name, loudest + 1)
        mono = np.ascontiguousarray(frames[:, loudest])
    return mono


def cancelling(frames: FloatArray, mono: FloatArray) -> int | None:
    """Return the index of the loudest channel if ``mono``, the average of ``frames``, lacks most of their sound.

    Return None for channels that can be averaged, silent ones among them.

    Args:
        frames: The channels (frames, channels).
        mono: Their average (frames,).
    """
    count = frames.shape[1]
    if count == 1:
        return None
    powers = np.square(frames, dtype=np.float64).sum(axis=0)  # (channels,)
    cancels = np.square(mono, dtype=np.float64).sum() < CANCELLED * powers.sum() / count**2
    return int(np.argmax(powers)) if cancels else None


def _check_levels(frames: FloatArray, path: str | Path) -> None:
    if not len(frames):
        return
    loudest = float(max(frames.max(), -frames.min()))  # NaN if any sample is NaN
    if not np.isfinite(loudest):
        raise AudioError(f"{path}: holds samples that are not finite (NaN or infinity)")
    if loudest > LOUDEST:
        raise AudioError(
            f"{path}: holds samples up to {loudest:.3g}, and full scale is 1; scale the samples, or write integers as "
            "integers"
        )
