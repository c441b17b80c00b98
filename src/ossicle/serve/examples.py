"""Speak example sentences with espeak-ng, for people who try the page without a microphone or a recording."""

from __future__ import annotations

import io
from functools import cache
from importlib.util import find_spec

import soundfile

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.corpora.voices import Voice, speak_with_times

SENTENCES = {
    "morning": "My friend goes to the market every morning.",
    "night": "It was a cold night and the wind was strong.",
    "garden": "We found the little boy in the garden.",
}
"""Sentences by the name of their recording. They are common words, which small models know."""
VOICE = Voice(accent="en-us", variant="f2", gender="female")
SEED = 3


def available() -> dict[str, str]:
    """Return the sentences that can be spoken, by name; none without the package espeakng-loader (extra ``tts``)."""
    return SENTENCES if find_spec("espeakng_loader") else {}


@cache
def spoken(name: str) -> bytes:
    """Return a sentence of `available` as a WAV file, 16 kHz, mono.

    Raises `KeyError` for another name, and `VoiceError` if espeak-ng fails.
    """
    utterance = speak_with_times(SENTENCES[name], VOICE, SEED)
    file = io.BytesIO()
    soundfile.write(file, utterance.waveform, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    return file.getvalue()
