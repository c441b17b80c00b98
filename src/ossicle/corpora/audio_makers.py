"""Create the audio files that a corpus does not contain as such (values of `Recording.make`, picklable)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.errors import AudioError, CorpusError

SIGNATURES = (
    (b"RIFF", b"WAVE", ".wav"),
    (b"RF64", b"WAVE", ".wav"),
    (b"FORM", b"AIFF", ".aiff"),
    (b"FORM", b"AIFC", ".aiff"),
    (b"fLaC", b"", ".flac"),
    (b"OggS", b"", ".ogg"),
    (b"ID3", b"", ".mp3"),
)
"""First bytes, bytes 8 to 12, and suffix of the formats that a table may contain."""


@dataclass(frozen=True)
class Joined:
    """Joins audio files without pauses, as 16-bit FLAC at 16 kHz."""

    parts: tuple[Path, ...]

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``. Raises `AudioError` if a part cannot be read, and `CorpusError` if the disk is full."""
        waveform = np.concatenate([read_audio(part) for part in self.parts])  # (S,)
        try:
            soundfile.write(path, waveform, SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")
        except soundfile.LibsndfileError as error:
            raise CorpusError(f"{path}: cannot be written ({error.error_string}); check the disk") from error
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
        for magic, kind, suffix in SIGNATURES:
            if head.startswith(magic) and head[12 - len(kind) :] == kind:
                return suffix
        if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE0 == 0xE0:  # the sync word of an MPEG frame
            return ".mp3"
        raise AudioError(f"is not WAV, FLAC, Ogg, MP3 or AIFF: it begins with {head!r}")
