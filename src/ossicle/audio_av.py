"""Decode formats that libsndfile does not read, such as m4a, mp4, webm, amr and wma, with PyAV (FFmpeg)."""

from __future__ import annotations

from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import soundfile

from ossicle.errors import AudioError

MOST_BYTES = 2**32 - 2**16
"""Largest size of the decoded sound: a WAV file in memory cannot be larger."""


def as_wav(path: Path) -> tuple[BytesIO, float] | None:
    """Return the first sound track of a file as a WAV file in float32, and the seconds that its header states.

    Rate and channels stay. The whole track is decoded. None is returned without PyAV; a header without a length gives
    0 seconds. Raises `AudioError` if the file has no sound, is damaged, or holds over 4 GB of sound.
    """
    try:
        import av
    except ImportError:
        return None
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: has no sound track")
            return _decoded(container, path)
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"{path}: is damaged, or FFmpeg does not read it ({str(error).splitlines()[0]})") from error


def _decoded(container: Any, path: Path) -> tuple[BytesIO, float]:
    import av

    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="flt")  # packed: channel by channel for each frame
    sound, frames = BytesIO(), 0
    with ExitStack() as stack:
        writer: soundfile.SoundFile | None = None
        for frame in container.decode(stream):
            for packed in resampler.resample(frame):
                rate, channels = packed.sample_rate, packed.layout.nb_channels
                if writer is None:
                    wav: dict[str, Any] = {"subtype": "FLOAT", "format": "WAV"}
                    writer = stack.enter_context(soundfile.SoundFile(sound, "w", rate, channels, **wav))
                if (rate, channels) != (writer.samplerate, writer.channels):
                    raise AudioError(f"{path}: rate or channels change in the middle; convert it with ffmpeg")
                frames += packed.samples
                if 4 * channels * frames > MOST_BYTES:
                    raise AudioError(f"{path}: holds more than 4 GB of sound; cut it into parts")
                writer.write(packed.to_ndarray().reshape(-1, channels))
    if not frames:
        raise AudioError(f"{path}: its sound track holds no samples")
    sound.seek(0)
    alone_s = container.duration / 1e6 if container.duration and len(container.streams) == 1 else 0.0
    return sound, float(stream.duration * stream.time_base) if stream.duration else alone_s
