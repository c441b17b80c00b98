"""Decode formats that libsndfile does not read, such as m4a, mp4, webm, amr and wma, with PyAV (FFmpeg)."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

from ossicle.audio_headers import truncated
from ossicle.errors import AudioError

MOST_BYTES = 2**32 - 2**16
"""Largest size of the decoded sound: a WAV file in memory cannot be larger."""


def as_wav(path: Path, tolerance_s: float) -> BytesIO | None:
    """Return the first sound track of a file as the content of a WAV file in float32; None without PyAV.

    Rate and channels stay. The whole track is decoded, about 100 to 1000 times as fast as it plays.

    Raises `AudioError` if the file has no sound, is damaged, holds over 4 GB of sound, or ends more than
    ``tolerance_s`` seconds before the end that its header states.
    """
    try:
        import av
    except ImportError:
        return None
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: has no sound track")
            return _decoded(container, path, tolerance_s)
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"{path}: is damaged, or FFmpeg does not read it ({str(error).splitlines()[0]})") from error


def _decoded(container: Any, path: Path, tolerance_s: float) -> BytesIO:
    import av

    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="flt")  # packed: channel by channel for each frame
    parts, size, rate, channels = [], 0, 0, 0
    for frame in container.decode(stream):
        for packed in resampler.resample(frame):
            rate, channels = packed.sample_rate, packed.layout.nb_channels
            parts.append(packed.to_ndarray().tobytes())
            size += len(parts[-1])
            if size > MOST_BYTES:
                raise AudioError(f"{path}: holds more than 4 GB of sound; cut it into parts")
    if not size:
        raise AudioError(f"{path}: its sound track holds no samples")
    found_s = size / (4 * channels * rate)
    alone_s = container.duration / 1e6 if container.duration and len(container.streams) == 1 else found_s
    stated_s = float(stream.duration * stream.time_base) if stream.duration else alone_s
    if stated_s > found_s + max(tolerance_s, 0.5):  # encoders add silence at both ends, which decoders cut off
        raise AudioError(truncated(path, stated_s, found_s))
    return BytesIO(b"".join([_wav_header(size, rate, channels), *parts]))


def _wav_header(size: int, rate: int, channels: int) -> bytes:
    """Return the header of a WAV file with ``size`` bytes of float32 samples."""
    block = 4 * channels
    head = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    return head + struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 3, channels, rate, rate * block, block, 32, b"data", size)
