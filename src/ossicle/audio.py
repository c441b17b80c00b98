"""Reading audio: whatever libsndfile reads, at any rate and channel count, becomes mono float32 at 16 kHz.

Every reason not to trust a file is an `AudioError` whose one sentence starts with the path. Two things libsndfile
cannot know: an Ogg file cut at a page boundary looks complete, and a variable-bit-rate MP3 without a Xing header has a
length that is only estimated. `ossicle.data.dataset` compares with the duration the manifest states and finds both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ossicle.errors import AudioError

SAMPLE_RATE_HZ = 16_000
"""Every waveform inside Ossicle is mono float32 at this rate."""

TOLERANCE_S = 0.1
"""How far a segment may end after the file, or decoding before the length in the header: rounding, encoder padding."""

PREROLL_S = 1.0
"""Decoded and thrown away before a segment: after a seek, MP3 borrows bits from frames it has not seen (wrong for
0.12 s), and Opus needs 0.08 s to converge."""

UNKNOWN_LENGTH_FRAMES = 2**40
"""libsndfile reports a huge frame count where a header, written while streaming, leaves the length open."""

UNKNOWN_SIZE_BYTES = 0x7FFF_F000
"""WAV writers that stream leave a data size from here up (sox, ffmpeg), which then says nothing about the length."""


def read_audio(path: str | Path, *, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """The waveform between ``start_s`` and ``end_s`` (to the end if ``None``), channels averaged, levels as stored.

    Only the segment is decoded. Raises `AudioError` for a missing, empty, foreign, truncated or sample-less file, a
    segment outside it, and samples that are not finite.
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
    return mono  # (S,)


def audio_duration_s(path: str | Path) -> float:
    """Seconds of audio in the whole file by its header, without decoding it; raises `AudioError`."""
    with _opened(path) as file:
        return file.frames / file.samplerate


@contextmanager
def _opened(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """The open file, its header checked; what libsndfile raises meanwhile comes out as `AudioError`."""
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
        raise AudioError(f"{path}: its header does not say how long it is; encode it once more, to a file, not a pipe")
    if file.format in ("WAV", "WAVEX"):
        present_s = file.frames / file.samplerate
        present_bytes = path.stat().st_size
        promised_s = present_s * _wav_promised_bytes(path) / present_bytes
        if promised_s > present_s + TOLERANCE_S:
            raise AudioError(_truncated(path, promised_s, present_s))


def _wav_promised_bytes(path: Path) -> int:
    """Size of the audio as the ``data`` chunk states it (libsndfile silently clips it); 0 where it is left open."""
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


def _read_frames(file: soundfile.SoundFile, path: str | Path, start: int, stop: int) -> np.ndarray:
    """Frames ``start`` to ``stop``, decoded from a little earlier so that the first ones are right too."""
    first = max(0, start - round(PREROLL_S * file.samplerate))
    if first:
        file.seek(first)
    frames = file.read(stop - first, dtype="float32", always_2d=True)[start - first :]  # (frames, channels)
    if stop - start - len(frames) > TOLERANCE_S * file.samplerate:
        raise AudioError(_truncated(path, stop / file.samplerate, (start + len(frames)) / file.samplerate))
    return frames


def _truncated(path: str | Path, promised_s: float, present_s: float) -> str:
    return f"{path}: is truncated: its header promises {promised_s:.2f} s, only {present_s:.2f} s can be read"
