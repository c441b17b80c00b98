"""Transcribe with Whisper's own decoder, the reference for recognition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ossicle.batch import Batch, Utterance, pad
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.evaluate.decode import decode
from ossicle.evaluate.whisper import MAX_NEW_TOKENS, WhisperRecogniser
from ossicle.precision import CPU, usable


def is_whisper(folder: Path) -> bool:
    """Return True if ``folder`` is a Whisper model with its decoder and its tokenizer."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        "WhisperForConditionalGeneration" in config.get("architectures", []) and (folder / "tokenizer.json").is_file()
    )


class Whisper:
    """Whisper's decoder as an `ossicle.evaluate.decode.Decoder`, in half precision where the CPU computes in it."""

    def __init__(self, folder: Path) -> None:
        """Load a folder of `WhisperForConditionalGeneration`. Raises `ModelError` if it cannot be loaded."""
        self.recogniser = WhisperRecogniser(str(folder), usable(torch.bfloat16, CPU))

    def generate_batch(self, batch: Batch, **decoding: Any) -> list[str]:
        """Return the transcript of each utterance of ``batch``. ``decoding`` only marks the file of hypotheses."""
        if batch.waveforms is None:
            raise ValueError("the batch has no waveforms")
        lengths = batch.waveforms.mask.sum(1).tolist()
        waves = [wave[:length] for wave, length in zip(batch.waveforms.values, lengths, strict=True)]
        return self.recogniser(waves, [sample.language for sample in batch.samples])


def decode_whisper(folder: Path, manifest: Path, out: Path) -> None:
    """Write Whisper's transcripts of ``manifest`` to ``out``. A second call continues.

    Raises `ModelError` if ``folder`` is not a Whisper model with its decoder.
    """
    whisper = Whisper(folder)

    def collate(items: list[Any]) -> Batch:
        utterances = [item for item in items if isinstance(item, Utterance)]
        waves = pad([item.waveform for item in utterances if item.waveform is not None])
        return Batch(samples=[item.sample for item in utterances], waveforms=waves)

    dataset = SpeechDataset(read_manifest(manifest), max_duration_s=float("inf"))
    decode(whisper, dataset, collate, out, fingerprint=whisper.recogniser.source, max_new_tokens=MAX_NEW_TOKENS)
