"""Find the speech in a recording, and cut it at pauses into windows that a model can read.

Two detectors find speech: Silero VAD, a small neural network (``pip install 'ossicle[vad]'``), and the energy of the
signal, which cannot tell speech from music. Without a name the first is used where it is installed.

Shape legend: S audio samples, N frames of 10 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.errors import MissingPackageError

FloatArray = npt.NDArray[Any]
DetectorName = Literal["auto", "silero", "energy", "off"]
HOP = SAMPLE_RATE_HZ // 100
"""Samples between two frames of the energy."""
MOST_S = 20.0
"""Default longest window in seconds."""
MARGIN_S = 0.2
"""Seconds that a window begins before its speech and ends after it, as far as the recording and its neighbours allow.

The first and the last sound of an utterance are often too soft to be detected."""
SHORTEST_S, JOINED_S = 0.1, 0.3
"""Sounds that are shorter do not count for `energy_speech`, and pauses that are shorter not for either detector."""
OVERLAP_S = 1.0
"""Seconds that two windows share where speech had to be cut without a pause."""
SILENCE_DB = -60.0
"""Level under which nothing is speech, relative to full scale."""
CONTRAST_DB, ABOVE_FLOOR_DB = 10.0, 8.0
"""Speech has loud and soft frames at least so far apart, and lies so far above the soft ones."""


@dataclass(frozen=True)
class Window:
    """A stretch of a recording with speech."""

    start_s: float
    end_s: float
    overlaps: bool = False
    """True if it begins before the end of the window before it, because there was no pause to cut at."""


Detector = Callable[[FloatArray], list[tuple[int, int]]]
"""Function that returns the first and the last sample of each stretch of speech in a waveform (S,)."""


def windows(waveform: FloatArray, *, most_s: float = MOST_S, detector: DetectorName = "auto") -> list[Window]:
    """Return the windows of a waveform (S,) at 16 kHz that hold speech, in order, each at most ``most_s`` seconds long.

    Silence and steady noise give no window; with Silero VAD, music gives none either. Windows end at pauses. Speech
    without a pause in ``most_s`` seconds is cut where it is softest, and the next window begins `OVERLAP_S` earlier.

    Raises `MissingPackageError` if ``silero`` is asked for and not installed.
    """
    margin, most = int(MARGIN_S * SAMPLE_RATE_HZ), int(most_s * SAMPLE_RATE_HZ)
    speech = find_detector(detector)(waveform)
    found: list[Window] = []
    for start, stop in _packed(speech, most - 2 * margin):
        before, after = max(0, start - margin), min(len(waveform), stop + margin)
        if found:  # margins of neighbours meet in the middle of the pause
            before = max(before, int(found[-1].end_s * SAMPLE_RATE_HZ))
        found += _cut(waveform, before, after, most)
    return found


def find_detector(name: DetectorName = "auto") -> Detector:
    """Return the detector ``name``; ``auto`` is Silero VAD where it is installed, else the energy.

    ``off`` takes everything for speech.
    """
    if name == "off":
        return lambda waveform: [(0, len(waveform))] if len(waveform) else []
    if name == "energy" or (name == "auto" and find_spec("silero_vad") is None):
        return energy_speech
    return silero_speech


def silero_speech(waveform: FloatArray) -> list[tuple[int, int]]:
    """Return the first and last sample of each stretch of speech in ``waveform`` (S,), by Silero VAD."""
    import torch

    get_timestamps, model = _silero()
    with torch.no_grad():
        stretches = get_timestamps(
            torch.from_numpy(np.ascontiguousarray(waveform, np.float32)),
            model,
            sampling_rate=SAMPLE_RATE_HZ,
            min_silence_duration_ms=int(1000 * JOINED_S),
        )
    return [(int(stretch["start"]), int(stretch["end"])) for stretch in stretches]


@cache
def _silero() -> tuple[Any, Any]:
    try:
        from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError as error:
        raise MissingPackageError(
            "the detector silero needs the package silero-vad: run `pip install 'ossicle[vad]'`, or choose energy"
        ) from error
    return get_speech_timestamps, load_silero_vad()


def energy_speech(waveform: FloatArray) -> list[tuple[int, int]]:
    """Return the first and last sample of each stretch of sound that stands out from the background, by its level.

    The background is the level that a tenth of the frames do not reach.
    """
    level = _levels_db(waveform)  # (N,)
    if not len(level):
        return []
    floor, loud = np.percentile(level, (10, 95))
    if loud < SILENCE_DB or loud - max(floor, SILENCE_DB) < CONTRAST_DB:
        return []
    threshold = max(floor + ABOVE_FLOOR_DB, SILENCE_DB, loud - 35)
    stretches = _runs(level > threshold)
    joined: list[tuple[int, int]] = []
    for start, stop in stretches:
        if joined and (start - joined[-1][1]) * HOP < JOINED_S * SAMPLE_RATE_HZ:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    shortest = SHORTEST_S * SAMPLE_RATE_HZ
    return [(start * HOP, min(stop * HOP, len(waveform))) for start, stop in joined if (stop - start) * HOP >= shortest]


def _levels_db(waveform: FloatArray) -> FloatArray:
    """Return the level (N,) of each 10 ms of ``waveform`` in dB of full scale, without its mean (S,)."""
    whole = len(waveform) // HOP * HOP
    frames = np.asarray(waveform[:whole], np.float64).reshape(-1, HOP)
    power = np.square(frames - frames.mean(1, keepdims=True)).mean(1)
    levels: FloatArray = 10 * np.log10(power + 1e-12)
    return levels


def _runs(flags: FloatArray) -> list[tuple[int, int]]:
    """Return the start and the end of each run of True in ``flags`` (N,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True))


def _packed(speech: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Join neighbouring stretches as long as they fit into ``most`` samples, with the longest pauses between groups.

    A group that is too long is divided at its longest pause, again and again.
    """
    groups: list[tuple[int, int]] = []
    left = [speech] if speech else []
    while left:
        group = left.pop()
        start, stop = group[0][0], group[-1][1]
        if len(group) == 1 or stop - start <= most:
            groups.append((start, stop))
            continue
        middle = (start + stop) / 2
        # Of equally long pauses the one in the middle: short windows lack context.
        pauses = [(b[0] - a[1], -abs(a[1] - middle), k) for k, (a, b) in enumerate(pairwise(group), 1)]
        cut = max(pauses)[2]
        left += [group[cut:], group[:cut]]
    return groups


def _cut(waveform: FloatArray, start: int, stop: int, most: int) -> list[Window]:
    """Return the samples from ``start`` to ``stop`` as windows of at most ``most`` samples, cut where it is softest."""
    found: list[Window] = []
    overlap = min(int(OVERLAP_S * SAMPLE_RATE_HZ), most // 4)
    overlaps = False
    while stop - start > most:
        level = _levels_db(waveform[start + most // 2 : start + most])
        smooth = np.convolve(level, np.ones(10) / 10, mode="same")
        end = start + most // 2 + (int(smooth.argmin()) * HOP if len(level) else most // 2)
        found.append(Window(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, overlaps))
        start, overlaps = end - overlap, True
    return [*found, Window(start / SAMPLE_RATE_HZ, stop / SAMPLE_RATE_HZ, overlaps)]
