"""Find recordings by the paths that a user gives, and read them in parts, whatever their length."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ossicle.audio import SAMPLE_RATE_HZ, audio_duration_s, read_audio
from ossicle.corpora.folder import OTHER_AUDIO_SUFFIXES
from ossicle.corpora.paths import AUDIO_SUFFIXES, files_below
from ossicle.errors import AudioError, DataError
from ossicle.models.recordings import read_recording

FloatArray = npt.NDArray[Any]
STDIN = Path("-")
SUFFIXES = {*AUDIO_SUFFIXES, *OTHER_AUDIO_SUFFIXES}
"""Suffixes of recordings in folders."""


def recordings_at(paths: list[str]) -> list[Path]:
    """Return the recordings at ``paths``: files, folders with recordings at any depth, patterns, and ``-``.

    Files in folders count as recordings by their suffix; hidden ones are left out. Raises `DataError` for an empty
    path, and for a folder or pattern without recordings.
    """
    found: list[Path] = []
    for name in paths:
        if not name:  # as a path, it is the current folder
            raise DataError("a path is empty; give other paths")
        path = Path(name).expanduser()
        if path.is_dir():
            files = (file for file, _ in files_below(path))
            below = sorted(file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())
        elif not path.exists() and any(char in name for char in "*?["):
            below = sorted(map(Path, glob(str(path), recursive=True)))  # noqa: PTH207 - absolute patterns, too
        else:
            below = [path]
        if not below:
            what = f"has no recordings ({' '.join(sorted(SUFFIXES))})" if path.is_dir() else "matches no files"
            raise DataError(f"{name}: {what}; give other paths")
        found += below
    if found.count(STDIN) > 1:
        raise DataError("-: standard input can be read once; write it once")
    return found


class Recording:
    """A recording that is read in parts.

    Args:
        audio: A path, ``-`` for an audio file on standard input, or anything that
            `ossicle.models.recordings.read_recording` takes.
        sampling_rate: Rate of a waveform without a rate of its own, in Hz.
        name: The recording in messages.

    Attributes:
        duration_s: Length in seconds.

    Raises `AudioError` for audio that cannot be read.
    """

    def __init__(self, audio: Any, sampling_rate: int | None = None, name: str | None = None) -> None:
        self.name = name or (str(audio) if isinstance(audio, str | Path) else "the recording")
        self._path: Path | None = None
        self._waveform: FloatArray = np.empty(0, np.float32)
        if isinstance(audio, str | Path) and Path(audio) != STDIN:
            self._path = Path(audio).expanduser()
            self.duration_s = audio_duration_s(self._path)
        else:
            source = sys.stdin.buffer.read() if isinstance(audio, str | Path) else audio
            self._waveform = read_recording(source, sampling_rate, self.name).numpy()
            self.duration_s = len(self._waveform) / SAMPLE_RATE_HZ

    def read(self, start_s: float = 0.0, end_s: float | None = None) -> FloatArray:
        """Return the waveform (S,) between two times at 16 kHz; ``end_s`` None is the end."""
        if self._path is not None:
            return read_audio(self._path, start_s=start_s, end_s=end_s)
        stop = None if end_s is None else int(end_s * SAMPLE_RATE_HZ)
        return self._waveform[int(start_s * SAMPLE_RATE_HZ) : stop]


def total_duration_s(files: Iterable[Path]) -> float | None:
    """Return the seconds of audio in ``files`` by their headers, or None if they hold none that can be read."""
    total = 0.0
    for file in files:
        if file != STDIN:
            with suppress(AudioError, OSError):
                total += audio_duration_s(file)
    return total or None
