"""Find where a speaker begins and ends in audio that arrives piece by piece (voice activity detection).

Shape legend: S audio samples at 16 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.listen.pauses import Detector, find_detector

FloatArray = npt.NDArray[Any]
TAIL_S = 3.0
"""Newest audio in which speech is looked for. It also tells the level of the background."""
CHECK_S = 0.1
"""Seconds of new audio after which the detector runs again."""
MOST_S = 60.0
"""Longest turn in seconds; a longer one is cut."""


@dataclass(frozen=True)
class Started:
    """A turn has begun."""

    start_s: float
    """Seconds since the first sample."""


@dataclass(frozen=True)
class Stopped:
    """A turn has ended, or a part of one that was too long."""

    end_s: float
    """Seconds since the first sample."""
    waveform: FloatArray  # (S,)


class Turns:
    """The audio of one speaker, and the turns in it.

    Args:
        silence_s: Silence that ends a turn, in seconds.
        padding_s: Audio before the first sound that belongs to the turn, in seconds.
        detector: Function that finds speech, by default that of `ossicle.listen.pauses`.
    """

    def __init__(self, silence_s: float = 0.5, padding_s: float = 0.3, detector: Detector | None = None) -> None:
        self.silence_s, self.padding_s = silence_s, padding_s
        self.speaking = False
        self._detector = detector or find_detector()
        self._buffer = np.empty(0, np.float32)  # (S,)
        self._begin = 0  # sample of the session with which the buffer begins
        self._checked = 0  # sample of the session up to which speech was looked for

    @property
    def end_s(self) -> float:
        """Seconds of audio that have arrived."""
        return (self._begin + len(self._buffer)) / SAMPLE_RATE_HZ

    def add(self, samples: FloatArray) -> None:
        """Append the next samples (S,)."""
        self._buffer = np.concatenate([self._buffer, samples])

    def take(self) -> FloatArray:
        """Return the audio (S,) that has not been returned, and end the turn."""
        taken, self._begin = self._buffer, self._begin + len(self._buffer)
        self._buffer, self.speaking = np.empty(0, np.float32), False
        return taken

    def check(self) -> list[Started | Stopped]:
        """Look for speech in the newest audio and return what has changed. Audio before a turn is dropped."""
        end = self._begin + len(self._buffer)
        if end - self._checked < CHECK_S * SAMPLE_RATE_HZ:
            return []
        self._checked = end
        tail = self._buffer[-int(TAIL_S * SAMPLE_RATE_HZ) :]
        speech = self._detector(tail)
        offset = end - len(tail)
        if not self.speaking:
            if not speech:
                self._drop(end - int(TAIL_S * SAMPLE_RATE_HZ))
                return []
            self.speaking = True
            self._drop(offset + speech[0][0] - int(self.padding_s * SAMPLE_RATE_HZ))
            return [Started(self._begin / SAMPLE_RATE_HZ)]
        last = offset + speech[-1][1] if speech else offset
        silent = end - last >= self.silence_s * SAMPLE_RATE_HZ
        if silent or len(self._buffer) > MOST_S * SAMPLE_RATE_HZ:
            return [Stopped(end / SAMPLE_RATE_HZ, self.take())]
        return []

    def _drop(self, until: int) -> None:
        """Drop the audio before the sample ``until`` of the session."""
        count = max(0, until - self._begin)
        self._buffer, self._begin = self._buffer[count:], self._begin + min(count, len(self._buffer))
