"""Speak one utterance into a file, in a process of its own. Nothing here imports torch, so that it starts fast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.corpora.voices import Voice, speak_with_times


@dataclass(frozen=True, kw_only=True)
class SpeakJob:
    """A text to speak and the WAV file to write."""

    path: Path
    text: str
    voice: Voice
    seed: int


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A job done."""

    path: Path
    duration_s: float
    rate_wpm: int
    words: list[tuple[str, float, float]]
    """(word, start_s, end_s)"""


def speak_file(job: SpeakJob) -> Spoken:
    """Speak ``job.text`` into ``job.path``, 16-bit WAV at 16 kHz."""
    utterance = speak_with_times(job.text, job.voice, job.seed)
    partial = job.path.with_suffix(f".{os.getpid()}.partial")
    soundfile.write(partial, utterance.waveform, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    partial.replace(job.path)  # a file is there only when it is complete
    return Spoken(path=job.path, duration_s=utterance.duration_s, rate_wpm=utterance.rate_wpm, words=utterance.words)
