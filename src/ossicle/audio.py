"""Read audio files: every format, rate and channel count that libsndfile reads becomes mono float32 at 16 kHz.

A file that cannot be trusted raises `AudioError`; the message starts with the path. An Ogg file that was cut at a page
boundary looks complete. `ossicle.data.dataset` finds it, because it compares the audio with the manifest's duration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import soxr

from ossicle.errors import AudioError

FloatArray = npt.NDArray[Any]
"""Samples of a waveform; float32 unless a docstring says otherwise."""

SAMPLE_RATE_HZ = 16_000
"""Sample rate of every waveform inside Ossicle, in Hz."""

TOLERANCE_S = 0.1
"""Seconds by which a segment may end after the file, or decoded audio may fall short of the header.

Rounding and encoder padding cause such differences.
"""


def read_audio(
    path: str | Path, *, start_s: float = 0.0, end_s: float | None = None, most_s: float | None = None
) -> FloatArray:
    """Read the waveform (S,) between ``start_s`` and ``end_s`` seconds; None reads to the end.

    Channels are averaged and levels are kept. If the channels cancel each other, as stereo with one inverted channel,
    the loudest one is read instead, with a warning. Only the segment is decoded.

    Raises `AudioError` if the file is missing, empty, truncated, not audio or without samples, if the segment is
    outside the file or longer than ``most_s`` seconds, or if a sample is not finite or far beyond full scale.
    """
    from ossicle.audio_decoding import read_mono, segment_frames  # only reading needs them
    from ossicle.audio_headers import opened

    with opened(path, TOLERANCE_S) as file:
        rate_hz = file.samplerate
        start, stop = segment_frames(file, path, start_s, end_s, TOLERANCE_S)
        if most_s is not None and stop - start > most_s * rate_hz:
            raise AudioError(f"{path}: lasts {(stop - start) / rate_hz:.2f} s, and at most {most_s:.2f} s are read")
        mono = read_mono(file, path, start, stop, TOLERANCE_S)  # (frames,)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    if not len(mono):
        raise AudioError(f"{path}: holds no samples between {start_s} s and {'the end' if end_s is None else end_s}")
    waveform: FloatArray = mono  # (S,)
    return waveform


def audio_duration_s(path: str | Path) -> float:
    """Return the seconds of audio in the whole file, from its header. Raises `AudioError` as `read_audio` does."""
    from ossicle.audio_headers import opened  # as in `read_audio`

    with opened(path, TOLERANCE_S) as file:
        return float(file.frames / file.samplerate)


def change_speed(waveform: FloatArray, factor: float) -> FloatArray:
    """Play ``waveform`` (S,) ``factor`` times as fast; the result has about S / ``factor`` samples."""
    if factor == 1.0:
        return waveform
    faster: FloatArray = soxr.resample(waveform, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)
    return faster
