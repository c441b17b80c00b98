"""Write one generated utterance to a file. This module does not import torch, so that processes start fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ossicle.corpora.voices import Voice, speak_with_times


@dataclass(frozen=True, kw_only=True)
class SpeakJob:
    """A text to speak and the WAV file to write."""

    path: Path
    text: str
    voice: Voice
    seed: int
    """Seed for rate, pitch and noise."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """The result of a `SpeakJob`."""

    path: Path
    duration_s: float
    rate_wpm: int
    """Speaking rate in words per minute."""
    words: list[tuple[str, float, float]]
    """Word, start and end in seconds."""


def speak_file(job: SpeakJob) -> Spoken:
    """Write the speech of ``job`` as 16-bit WAV at 16 kHz. Raises `VoiceError` as `speak_with_times` does."""
    utterance = speak_with_times(job.text, job.voice, job.seed)
    utterance.write(job.path)
    return Spoken(path=job.path, duration_s=utterance.duration_s, rate_wpm=utterance.rate_wpm, words=utterance.words)
