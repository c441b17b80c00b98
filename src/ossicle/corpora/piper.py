"""Speak texts with Piper, whose neural voices sound natural and are faster than real time on one CPU core.

The package ``piper-tts`` (extra ``piper``) runs a voice, which is a pair of files: VOICE.onnx and VOICE.onnx.json.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.corpora.voices import NOISE_STD, PEAK
from ossicle.errors import MakeError, MissingPackageError, VoiceError
from ossicle.files import atomic

PITCH = (0.84, 1.22)
"""Range of the factor of pitch and formants, so that one voice sounds like several; one utterance in three has 1."""
TEMPO = (0.85, 1.2)
"""Range of the factor of the speaking rate."""
NOISE_SCALE, WIDTH_NOISE_SCALE = (0.4, 0.9), (0.5, 1.0)
"""Ranges of Piper's own noise, which varies intonation and the lengths of sounds."""


@dataclass(frozen=True)
class PiperMaker:
    """Writes WAV at 16 kHz with a voice of Piper, at a pitch, rate and level drawn from the seed and the text."""

    text: str
    model: str
    speaker: int | None
    """Number of the speaker in a voice of several."""
    seed: int

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``. Raises `MakeError` if Piper fails or gives no sound."""
        rng = np.random.default_rng([self.seed, zlib.crc32(f"{self.model}\n{self.text}".encode())])
        pitch = 1.0 if rng.random() < 1 / 3 else rng.uniform(*PITCH)
        try:
            waveform, rate_hz = self._speech(pitch / rng.uniform(*TEMPO), rng)
        except Exception as error:  # errors of onnxruntime and of Piper have no class in common
            raise MakeError(f"{self.model}: Piper fails on {self.text!r:.80} ({error!s:.200})") from error
        if not np.abs(waveform).max(initial=0.0) > 0:
            raise MakeError(f"{self.model}: Piper gives no sound for {self.text!r:.80}; use a text with words")
        waveform = soxr.resample(waveform, rate_hz * pitch, SAMPLE_RATE_HZ)  # a higher rate raises pitch and formants
        waveform = waveform * (rng.uniform(*PEAK) / np.abs(waveform).max())
        waveform = waveform + rng.uniform(*NOISE_STD) * rng.standard_normal(len(waveform))
        with atomic(path) as partial:
            soundfile.write(partial, np.clip(waveform, -1, 1), SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
        return {"pitch": round(float(pitch), 3)}

    def _speech(self, length_scale: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return the waveform (S,) of all sentences of the text and its sampling rate in Hz."""
        from piper.config import SynthesisConfig

        voice = _voice(self.model)
        settings = SynthesisConfig(
            speaker_id=self.speaker,
            length_scale=length_scale,
            noise_scale=rng.uniform(*NOISE_SCALE),
            noise_w_scale=rng.uniform(*WIDTH_NOISE_SCALE),
        )
        chunks = [chunk.audio_float_array for chunk in voice.synthesize(self.text, settings)]
        return np.concatenate([np.zeros(0, np.float32), *chunks]).astype(np.float32), voice.config.sample_rate


def check_voices(models: tuple[str, ...]) -> None:
    """Raise `MissingPackageError` if Piper is not installed, and `VoiceError` for a voice that does not load."""
    try:
        import piper  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise MissingPackageError("Piper is not installed: run pip install 'ossicle[piper]'") from error
    for model in models:
        number_of_speakers(model)
        try:
            _voice(model)
        except Exception as error:  # errors of onnxruntime have no class in common
            raise VoiceError(f"{model}: cannot be loaded as a voice of Piper ({error!s:.200})") from error


@cache
def number_of_speakers(model: str) -> int:
    """Return the number of speakers of a voice. Raises `VoiceError` if a file of it is missing or damaged."""
    about = Path(f"{model}.json")
    if not Path(model).is_file():
        raise VoiceError(f"--piper {model}: there is no such file; give the .onnx file of a Piper voice")
    try:
        return max(1, int(json.loads(about.read_text(encoding="utf-8")).get("num_speakers", 1)))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise VoiceError(f"{about}: is not the description of a Piper voice ({error!s:.100})") from error


@cache
def _voice(model: str) -> Any:
    """Return a voice that computes in one thread: each process of a pool has its own, and shares the cores."""
    import onnxruntime
    from piper import PiperVoice

    voice = PiperVoice.load(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    voice.session = onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    return voice
