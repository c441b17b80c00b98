"""Audio that a corpus does not hold as a file of its own: what `Recording.make` may be. Picklable, no torch."""

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
    """The files one after the other, as 16-bit FLAC at 16 kHz."""

    parts: tuple[Path, ...]

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``; raises `AudioError` for a part that cannot be read."""
        waveform = np.concatenate([read_audio(part) for part in self.parts])  # (S,)
        soundfile.write(path, waveform, SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")
        return {}


@dataclass(frozen=True)
class Embedded:
    """The bytes of an audio file, as they came in a table."""

    content: bytes

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``."""
        path.write_bytes(self.content)
        return {}

    def suffix(self) -> str:
        """File name suffix by the first bytes; raises `AudioError` for what is not audio that Ossicle reads."""
        head = self.content[:12]
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return ".wav"
        for magic, suffix in ((b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3")):
            if head.startswith(magic):
                return suffix
        if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE0 == 0xE0:  # the sync word of an MPEG frame
            return ".mp3"
        raise AudioError(f"is no WAV, FLAC, Ogg or MP3: it begins with {head!r}")
