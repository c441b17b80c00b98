"""Voices of Piper: the package's interface is a stand-in here; lab/tests/real speaks with a real voice."""

import json
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ossicle.audio import read_audio
from ossicle.corpora import piper
from ossicle.corpora.tts import TtsOptions, prepare_tts
from ossicle.data.manifest import read_manifest
from ossicle.errors import CorpusError, MissingPackageError, VoiceError

RATE_HZ = 22050
TONE_HZ = 200.0


@dataclass
class Settings:
    speaker_id: int | None
    length_scale: float
    noise_scale: float
    noise_w_scale: float


class StandIn:
    """Says each text as a tone of 0.5 s times its length scale, in two chunks; it fails on one word."""

    config = SimpleNamespace(sample_rate=RATE_HZ)

    def synthesize(self, text, settings):
        if "impossible" in text:
            raise RuntimeError("cannot say that")
        if "silence" in text:
            return
        seconds = 0.5 * settings.length_scale
        tone = np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * RATE_HZ)) / RATE_HZ).astype(np.float32)
        for part in np.array_split(tone, 2):
            yield SimpleNamespace(audio_float_array=part)


@pytest.fixture
def voice(tmp_path, monkeypatch):
    """Return the path of a voice with 3 speakers, which `StandIn` speaks."""
    package, config = ModuleType("piper"), ModuleType("piper.config")
    config.SynthesisConfig = Settings
    monkeypatch.setitem(sys.modules, "piper", package)
    monkeypatch.setitem(sys.modules, "piper.config", config)
    monkeypatch.setattr(piper, "_voice", lambda model: StandIn())
    model = tmp_path / "en.onnx"
    model.write_bytes(b"weights")
    (tmp_path / "en.onnx.json").write_text(json.dumps({"num_speakers": 3}))
    return str(model)


def test_texts_are_spoken_at_many_rates_and_pitches(voice, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"Sentence number {i}.\n" for i in range(40)))
    prepare_tts(texts, tmp_path / "out", TtsOptions(piper=(voice,)), show=False)
    lines = read_manifest(tmp_path / "out/texts.jsonl")
    assert len(lines) == 40
    assert {line.speaker for line in lines} == {"en#0", "en#1", "en#2"}
    for line in lines:
        waveform = np.asarray(read_audio(line.audio))
        pitch = line.extra["pitch"]
        spectrum = np.abs(np.fft.rfft(waveform))
        assert np.argmax(spectrum) * 16000 / len(waveform) == pytest.approx(TONE_HZ * pitch, rel=0.03)
        assert 0.5 / 1.2 - 0.01 < line.duration_s < 0.5 / 0.85 + 0.01  # the rate alone decides, not the pitch
    pitches = [line.extra["pitch"] for line in lines]
    assert pitches.count(1.0) in range(5, 25)
    assert max(pitches) > 1.1 > 0.95 > min(pitches)
    prepare_tts(texts, tmp_path / "again", TtsOptions(piper=(voice,)), show=False)
    first, second = (np.asarray(read_audio(tmp_path / f"{name}/audio/texts-000003.wav")) for name in ("out", "again"))
    assert (first == second).all()


def test_a_text_that_cannot_be_spoken_does_not_stop_the_others(voice, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("Good.\nAn impossible one.\nOnly silence.\nGood again.\n")
    prepare_tts(texts, tmp_path / "out", TtsOptions(piper=(voice,)), show=False)
    assert [line.text for line in read_manifest(tmp_path / "out/texts.jsonl")] == ["Good.", "Good again."]


def test_missing_parts_are_named(voice, tmp_path, monkeypatch):
    texts = tmp_path / "texts.txt"
    texts.write_text("Good.\n")
    with pytest.raises(VoiceError, match=r"--piper .*no\.onnx: there is no such file"):
        prepare_tts(texts, tmp_path / "out", TtsOptions(piper=(str(tmp_path / "no.onnx"),)), show=False)
    (tmp_path / "bad.onnx").write_bytes(b"weights")
    (tmp_path / "bad.onnx.json").write_text("[]")
    with pytest.raises(VoiceError, match=r"bad\.onnx\.json: is not the description of a Piper voice"):
        prepare_tts(texts, tmp_path / "out", TtsOptions(piper=(str(tmp_path / "bad.onnx"),)), show=False)
    monkeypatch.setattr(piper, "_voice", lambda model: int("no voice"))
    with pytest.raises(VoiceError, match=r"en\.onnx: cannot be loaded as a voice of Piper .*no voice"):
        prepare_tts(texts, tmp_path / "out", TtsOptions(piper=(voice,)), show=False)
    with pytest.raises(CorpusError, match="give one of them"):
        prepare_tts(texts, tmp_path / "out", TtsOptions(piper=(voice,), command="say {out}"), show=False)
    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'ossicle\[piper\]'"):
        prepare_tts(texts, tmp_path / "out", TtsOptions(piper=(voice,)), show=False)
