"""Create the audio files that a corpus does not contain as such (values of `Recording.make`, picklable)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.errors import AudioError


@dataclass(frozen=True)
class Joined:
    """Joins audio files without pauses, as 16-bit FLAC at 16 kHz."""

    parts: tuple[Path, ...]

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``. Raises `AudioError` if a part cannot be read."""
        waveform = np.concatenate([read_audio(part) for part in self.parts])  # (S,)
        soundfile.write(path, waveform, SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")
        return {}


@dataclass(frozen=True)
class Embedded:
    """Writes the bytes of an audio file that a table contains."""

    content: bytes

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``."""
        path.write_bytes(self.content)
        return {}

    def suffix(self) -> str:
        """Return the file name suffix for the first bytes. Raises `AudioError` for other formats."""
        head = self.content[:12]
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return ".wav"
        for magic, suffix in ((b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3")):
            if head.startswith(magic):
                return suffix
        if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE0 == 0xE0:  # the sync word of an MPEG frame
            return ".mp3"
        raise AudioError(f"is not WAV, FLAC, Ogg or MP3: it begins with {head!r}")
