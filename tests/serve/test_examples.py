"""Sentences that the server speaks for people without a microphone."""

import io

import pytest
import soundfile

from ossicle.serve import examples


def test_without_a_voice_there_are_no_examples(monkeypatch):
    monkeypatch.setattr(examples, "find_spec", lambda name: None)
    assert examples.available() == {}


def test_every_example_is_a_short_recording_at_16_khz():
    if not examples.available():
        pytest.skip("there is no voice: pip install 'ossicle[tts]'")
    files = {examples.spoken(name) for name in examples.available()}
    assert len(files) == len(examples.SENTENCES)
    for file in files:
        waveform, rate_hz = soundfile.read(io.BytesIO(file))
        assert rate_hz == 16_000
        assert waveform.ndim == 1
        assert 1 < len(waveform) / rate_hz < 5
        assert abs(waveform).max() > 0.1
