"""Decode formats that libsndfile does not read, such as m4a, mp4, webm, amr and wma, with PyAV (FFmpeg)."""

from __future__ import annotations

import mmap
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import soundfile

from ossicle.errors import AudioError

MOST_BYTES = 2**34
"""Largest size of the decoded sound: 12 hours of stereo at 48 kHz."""


class Decoded(NamedTuple):
    """The sound of a file, frame after frame in float32, in a temporary file that goes when nobody reads it."""

    file: IO[bytes]
    rate_hz: int
    channels: int
    stated_s: float
    """Length by the header in seconds, or 0."""

    def open(self) -> soundfile.SoundFile:
        """Return the sound as an audio file with its own position."""
        content: Any = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        form = {"format": "RAW", "subtype": "FLOAT", "endian": "LITTLE"}
        return soundfile.SoundFile(content, "r", self.rate_hz, self.channels, **form)


def opened_by_av(path: Path) -> tuple[soundfile.SoundFile, float] | None:
    """Return the first sound track of a file as an open audio file, and the seconds that its header states (or 0).

    Rate and channels stay. The whole track is decoded, frame by frame into a file in the folder for temporary files, so
    that the memory does not grow with its length. That of the newest file is kept: a long recording is read in parts.

    None is returned without PyAV. Raises `AudioError` if the file has no sound, is damaged, or holds over 17 GB of
    sound, or if there is no room for it.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        return None
    state = path.stat()
    decoded = _decoded(path, (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size))
    return decoded.open(), decoded.stated_s


def forget() -> None:
    """Let the decoded sound of the newest file go, where nothing may be kept."""
    _decoded.cache_clear()


@lru_cache(maxsize=1)
def _decoded(path: Path, identity: tuple[int, ...]) -> Decoded:
    """Decode a file; the cache knows by ``identity`` whether it is still the same."""
    import av

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: has no sound track")
            return _stored(container, path)
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"{path}: is damaged, or FFmpeg does not read it ({str(error).splitlines()[0]})") from error


def _stored(container: Any, path: Path) -> Decoded:
    import av

    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="flt")  # packed: channel by channel for each frame
    file: Any = tempfile.TemporaryFile(prefix="ossicle-")  # noqa: SIM115 - it is closed with its last reader
    form: tuple[int, int] | None = None
    for frame in container.decode(stream):
        for packed in resampler.resample(frame):
            form = form or (packed.sample_rate, packed.layout.nb_channels)
            if form != (packed.sample_rate, packed.layout.nb_channels):
                raise AudioError(f"{path}: rate or channels change in the middle; convert it with ffmpeg")
            if file.tell() > MOST_BYTES:
                raise AudioError(f"{path}: holds more than {MOST_BYTES / 1e9:.0f} GB of sound; cut it into parts")
            _write(file, packed.to_ndarray().astype("<f4", copy=False).tobytes(), path)
    if form is None or not file.tell():
        raise AudioError(f"{path}: its sound track holds no samples")
    _write(file, None, path)
    alone_s = container.duration / 1e6 if container.duration and len(container.streams) == 1 else 0.0
    return Decoded(file, *form, float(stream.duration * stream.time_base) if stream.duration else alone_s)


def _write(file: Any, content: bytes | None, path: Path) -> None:
    """Write ``content`` to the temporary file; None writes what is still in memory."""
    try:
        file.flush() if content is None else file.write(content)
    except OSError as error:
        raise AudioError(
            f"{path}: there is no room for the decoded sound in {tempfile.gettempdir()} ({error.strerror}); set TMPDIR "
            "to another folder"
        ) from error
