"""Read audio files: every format, rate and channel count that libsndfile reads becomes mono float32 at 16 kHz.

A file that cannot be trusted raises `AudioError`; the message starts with the path. libsndfile misses two faults: an
Ogg file cut at a page boundary looks complete, and the length of a variable-bit-rate MP3 without a Xing header is an
estimate. `ossicle.data.dataset` finds both, because it compares the audio with the manifest's duration.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
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

PREROLL_S = 1.0
"""Seconds that are decoded before a segment and discarded. After a seek, MP3 needs bits of earlier frames (0.12 s are
wrong), and Opus needs 0.08 s to converge."""

UNKNOWN_LENGTH_FRAMES = 2**40
"""Frame count above which the length is unknown: libsndfile reports such a count for headers written by a stream."""

UNKNOWN_SIZE_BYTES = 0x7FFF_F000
"""Data size of a WAV file from which on it means "unknown": sox and ffmpeg write such sizes when they stream."""


def read_audio(path: str | Path, *, start_s: float = 0.0, end_s: float | None = None) -> FloatArray:
    """Read the waveform (S,) between ``start_s`` and ``end_s`` seconds; None reads to the end.

    Channels are averaged and levels are kept. Only the segment is decoded. Raises `AudioError` if the file is missing,
    empty, truncated, not audio or without samples, if the segment is outside the file, or if a sample is not finite.
    """
    with _opened(path) as file:
        rate_hz = file.samplerate
        start, stop = _segment_frames(file, path, start_s, end_s)
        mono = _read_frames(file, path, start, stop).mean(axis=1)  # (frames,)
    if not np.isfinite(mono).all():
        raise AudioError(f"{path}: holds samples that are not finite (NaN or infinity)")
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    if not len(mono):
        raise AudioError(f"{path}: holds no samples between {start_s} s and {'the end' if end_s is None else end_s}")
    waveform: FloatArray = mono  # (S,)
    return waveform


def audio_duration_s(path: str | Path) -> float:
    """Return the seconds of audio in the whole file, from its header. Raises `AudioError` as `read_audio` does."""
    with _opened(path) as file:
        return float(file.frames / file.samplerate)


@contextmanager
def _opened(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open the file and check its header; errors of libsndfile become `AudioError`."""
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: is a folder, not a file" if path.is_dir() else f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: is not an audio file, or its header is damaged") from error
    with file:
        _check_header(file, path)
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path}: is truncated or damaged ({error.error_string})") from error


def _check_header(file: soundfile.SoundFile, path: Path) -> None:
    if file.frames == 0:
        raise AudioError(f"{path}: holds no samples")
    if file.frames > UNKNOWN_LENGTH_FRAMES:
        raise AudioError(f"{path}: its header has no length; encode it again, to a file instead of a pipe")
    if file.format in ("WAV", "WAVEX"):
        present_s = file.frames / file.samplerate
        present_bytes = path.stat().st_size
        promised_s = present_s * _wav_promised_bytes(path) / present_bytes
        if promised_s > present_s + TOLERANCE_S:
            raise AudioError(_truncated(path, promised_s, present_s))


def _wav_promised_bytes(path: Path) -> int:
    """Return the size of the audio as the ``data`` chunk states it, or 0 if it is unknown; libsndfile clips it."""
    with path.open("rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return 0
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                return size if size < UNKNOWN_SIZE_BYTES else 0
            file.seek(size + size % 2, 1)  # chunks are padded to even sizes
    return 0


def _segment_frames(
    file: soundfile.SoundFile, path: str | Path, start_s: float, end_s: float | None
) -> tuple[int, int]:
    duration_s = file.frames / file.samplerate
    stop_s = duration_s if end_s is None else end_s
    if not 0 <= start_s < min(stop_s, duration_s) or stop_s > duration_s + TOLERANCE_S:
        raise AudioError(
            f"{path}: the segment {start_s}-{stop_s} s is not inside the file, which lasts {duration_s:.2f} s"
        )
    return round(start_s * file.samplerate), min(round(stop_s * file.samplerate), file.frames)


def _read_frames(file: soundfile.SoundFile, path: str | Path, start: int, stop: int) -> FloatArray:
    """Read the frames ``start`` to ``stop``; decoding starts earlier, so that the first frames are correct."""
    first = max(0, start - round(PREROLL_S * file.samplerate))
    if first:
        file.seek(first)
    frames: FloatArray = file.read(stop - first, dtype="float32", always_2d=True)[start - first :]  # (frames, channels)
    if stop - start - len(frames) > TOLERANCE_S * file.samplerate:
        raise AudioError(_truncated(path, stop / file.samplerate, (start + len(frames)) / file.samplerate))
    return frames


def _truncated(path: str | Path, promised_s: float, present_s: float) -> str:
    return f"{path}: is truncated: its header promises {promised_s:.2f} s, only {present_s:.2f} s can be read"
