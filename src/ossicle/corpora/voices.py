"""Generate speech with word times through the C interface of espeak-ng.

espeak-ng is GPL-3, so this package contains no part of it. The package ``espeakng_loader`` (extra ``tts``) provides the
shared library and its data, and ctypes calls the library at run time.
"""

from __future__ import annotations

import ctypes
import threading
import zlib
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.errors import VoiceError
from ossicle.files import atomic

RATE_WPM = (150, 210)
"""Range of the speaking rate, in words per minute."""
PITCH = (38, 62)
"""Range of the pitch parameter of espeak-ng; 50 is the pitch of the voice file."""
NOISE_STD = (0.0005, 0.004)
"""Range of the standard deviation of the added white noise; the waveform is in [-1, 1]."""
PEAK = (0.4, 0.9)
"""Range of the largest absolute sample value."""
EDGE_SILENCE_S = 0.05
"""Longest silence before and after the speech, in seconds."""

Gender = Literal["female", "male"]


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A generated voice: an accent of espeak-ng with one of its voice variants."""

    accent: str
    variant: str
    gender: Gender

    @property
    def name(self) -> str:
        """The name of the voice in espeak-ng, such as ``en-us+f3``."""
        return f"{self.accent}+{self.variant}"


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A generated utterance with its word times."""

    waveform: np.ndarray  # (S,) float32 mono at 16 kHz, in [-1, 1]
    words: list[tuple[str, float, float]]
    """Word, start and end in seconds, for each word in order. espeak-ng reports starts, and a word ends where the next
    starts. Words that espeak-ng speaks as one ("of the") share its time in proportion to their letters."""
    rate_wpm: int
    """Speaking rate in words per minute."""
    pitch: int
    """Pitch parameter of espeak-ng."""

    def write(self, path: Path) -> None:
        """Write the waveform to ``path`` as 16-bit WAV."""
        with atomic(path) as partial:
            soundfile.write(partial, self.waveform, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")

    @property
    def duration_s(self) -> float:
        """The duration in seconds."""
        return len(self.waveform) / SAMPLE_RATE_HZ


# The accent "en" is British. The two splits share no variant. Whispers, robots, croaks and children are excluded
# because they are hard to understand. The genders are those of the variants' files; a file without one is male.
_TRAIN = {
    "female": {
        "en-us": "Alicia anika aunty belinda f1 f2 f5 linda steph steph2",
        "en": "anika belinda f1 f5 steph",
        "en-gb-x-rp": "Alicia f2",
        "en-gb-scotland": "aunty linda",
        "en-us-nyc": "f5",
    },
    "male": {
        "en-us": "Alex Andy Diogo Gene Hugo Jacky Marco Storm antonio ed john m1 m2 m4 m6 m8 robert travis victor",
        "en": "Alex Gene Storm m1 m4 m6 max",
        "en-gb-x-rp": "antonio m2",
        "en-gb-scotland": "ed m8",
        "en-us-nyc": "Diogo",
    },
}
_TEST = {
    "female": {"en-us": "f3 Andrea Annie", "en": "f4 Andrea"},
    "male": {"en-us": "m3 m7 miguel Denis", "en": "m5"},
}


def train_voices() -> list[Voice]:
    """Return the 51 voices for training, which share no variant with `held_out_voices`."""
    return _expand(_TRAIN)


def held_out_voices() -> list[Voice]:
    """Return the 10 voices for development and test sets, 5 female and 5 male."""
    return _expand(_TEST)


def speak_with_times(text: str, voice: Voice, seed: int = 0) -> Utterance:
    """Speak ``text`` at a rate, pitch, peak level and noise level drawn from the seed, the voice and the text.

    Silence before and after the speech is cut to `EDGE_SILENCE_S`. Equal arguments give equal results.

    Raises:
        VoiceError: espeak-ng is not installed, does not have the voice, or produces no sound for the text.
    """
    rng = np.random.default_rng([seed, zlib.crc32(f"{voice.name}\n{text}".encode())])
    rate_wpm, pitch = (int(rng.integers(low, high, endpoint=True)) for low, high in (RATE_WPM, PITCH))
    speech = espeak().synthesise(text, voice.name, rate_wpm, pitch)
    if not speech.samples.any():
        raise VoiceError(f"espeak-ng produces no sound for {text!r}; use a text with words")
    waveform = soxr.resample(speech.samples.astype(np.float32), speech.sample_rate_hz, SAMPLE_RATE_HZ)
    first, last = _speech_span(waveform)
    waveform = waveform[first:last] * (rng.uniform(*PEAK) / np.abs(waveform).max())
    waveform = waveform + rng.uniform(*NOISE_STD) * rng.standard_normal(len(waveform))
    waveform = np.clip(waveform, -1.0, 1.0).astype(np.float32)
    offset_s, duration_s = first / SAMPLE_RATE_HZ, len(waveform) / SAMPLE_RATE_HZ
    shifted = {position: min(max(start - offset_s, 0.0), duration_s) for position, start in speech.starts.items()}
    words = _word_times(text, shifted, duration_s)
    return Utterance(waveform=waveform, words=words, rate_wpm=rate_wpm, pitch=pitch)


@dataclass(frozen=True)
class Speech:
    """The output of espeak-ng."""

    samples: np.ndarray  # (S,) int16
    sample_rate_hz: int
    starts: dict[int, float]
    """Start of a word in seconds, by the index of its first character in the text."""


class Espeak:
    """The espeak-ng library of this process; `espeak` returns the only instance.

    espeak-ng keeps its voice, callback, flutter phase and echo buffer in global variables, and has no function that
    resets them. ``synthesise`` therefore loads the library for every text (4 ms) and holds a lock until it is unloaded.
    Otherwise the sound of a text would depend on the texts before it. Use processes, not threads, to speak in parallel.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise VoiceError("generated voices need espeak-ng; install it: pip install espeakng-loader") from error
        self._path = str(espeakng_loader.get_library_path())
        self._data = str(espeakng_loader.get_data_path()).encode()
        self._lock = threading.Lock()
        self._libc = ctypes.CDLL(None)
        self._libc.dlclose.argtypes = (ctypes.c_void_p,)

    def synthesise(self, text: str, voice: str, rate_wpm: int, pitch: int) -> Speech:
        """Speak ``text``. Equal arguments give equal samples. Raises `VoiceError` if espeak-ng fails."""
        with self._lock:
            library = ctypes.CDLL(self._path)
            try:
                return self._synthesise(library, text, voice, (rate_wpm, pitch))
            finally:
                library.espeak_Terminate()
                self._libc.dlclose(library._handle)

    def _synthesise(self, library: ctypes.CDLL, text: str, voice: str, rate_pitch: tuple[int, int]) -> Speech:
        chunks: list[np.ndarray] = []
        starts: dict[int, float] = {}

        def collect(wav: Any, count: int, events: Any) -> int:
            for event in takewhile(lambda event: event.type != _EVENT_LIST_END, events):
                if event.type == _EVENT_WORD:  # espeak-ng counts characters from 1
                    starts.setdefault(event.text_position - 1, event.audio_position / 1000)
            if wav and count > 0:
                chunks.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
            return 0  # continue

        sample_rate_hz = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, self._data, _DONT_EXIT)
        if sample_rate_hz <= 0:
            raise VoiceError("espeak-ng cannot read its data; reinstall espeakng-loader")
        callback = _CALLBACK(collect)  # in a variable, because ctypes does not keep it alive
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise VoiceError(f"espeak-ng has no voice {voice!r}; choose an accent and a variant that it lists")
        for parameter, value in ((_RATE, rate_pitch[0]), (_PITCH, rate_pitch[1]), (_VOLUME, _VOLUME_PERCENT)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # otherwise the clock seeds the noise of breathy voices
        buffer = ctypes.create_string_buffer(text.encode())
        status = library.espeak_Synth(buffer, ctypes.c_size_t(len(buffer)), 0, 1, 0, _UTF8, None, None)
        if status != 0 or library.espeak_Synchronize() != 0:
            raise VoiceError(
                f"espeak-ng failed on {text!r} with the voice {voice!r}; use another voice or leave out the text"
            )
        return Speech(np.concatenate([*chunks, np.zeros(0, np.int16)]), sample_rate_hz, starts)


@cache
def espeak() -> Espeak:
    """Return the `Espeak` of this process. Raises `VoiceError` if espeak-ng is not installed."""
    return Espeak()


class _Event(ctypes.Structure):
    """The structure ``espeak_EVENT`` of espeak-ng."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_OUTPUT_SYNCHRONOUS = 2
_DONT_EXIT = 1 << 15
_RATE, _VOLUME, _PITCH = 1, 2, 3
_VOLUME_PERCENT = 40  # at the default of 100, the louder variants clip
_UTF8 = 1
_EVENT_LIST_END, _EVENT_WORD = 0, 1


def _expand(table: dict[Any, dict[str, str]]) -> list[Voice]:
    return [
        Voice(accent=accent, variant=variant, gender=gender)
        for gender, accents in table.items()
        for accent, variants in accents.items()
        for variant in variants.split()
    ]


def _speech_span(waveform: np.ndarray) -> tuple[int, int]:
    """Return the start and end of the part within 45 dB of the peak, with the allowed silence around it."""
    loud = np.flatnonzero(np.abs(waveform) > np.abs(waveform).max() * 10 ** (-45 / 20))
    edge = int(EDGE_SILENCE_S * SAMPLE_RATE_HZ)
    return max(int(loud[0]) - edge, 0), min(int(loud[-1]) + 1 + edge, len(waveform))


def _word_times(text: str, starts: dict[int, float], duration_s: float) -> list[tuple[str, float, float]]:
    """Return the times of all words of ``text`` from the starts that espeak-ng reported by character index."""
    words: list[str] = text.split()
    positions, cursor = [], 0
    for word in words:
        cursor = text.index(word, cursor)
        positions.append(cursor)
        cursor += len(word)
    known = {0: starts.get(positions[0], 0.0)} | {i: starts[p] for i, p in enumerate(positions) if p in starts}
    anchors = [*sorted(known), len(words)]
    edges = np.zeros(len(words) + 1)
    edges[-1] = duration_s
    for left, right in pairwise(anchors):
        end = known.get(right, duration_s)
        letters = np.cumsum([0] + [len(word) for word in words[left:right]])
        edges[left : right + 1] = known[left] + (end - known[left]) * letters / letters[-1]
    edges = np.maximum.accumulate(edges)
    return [(word, float(edges[i]), float(edges[i + 1])) for i, word in enumerate(words)]
