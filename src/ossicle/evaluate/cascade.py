"""Decode with a cascade, the baseline: the encoder's own recogniser transcribes, and the LLM reads the transcript.

The recogniser is the CTC head of an encoder that was fine-tuned to spell, or the decoder of a Whisper model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ossicle.align.aligner import Aligner
from ossicle.batch import Batch, Sample, Skipped, Utterance, pad
from ossicle.data.collate import Collator
from ossicle.errors import ModelError
from ossicle.evaluate.whisper import WhisperRecogniser
from ossicle.models.conversation import EMPTY_TRANSCRIPT
from ossicle.models.frozen import resolve
from ossicle.models.loading import loading_model


class Recogniser(Protocol):
    """Interface of a recogniser."""

    source: str
    """Identity of the model and its weights."""

    def __call__(self, waveforms: Sequence[Tensor], languages: Sequence[str | None] = ()) -> list[str]:
        """Return the transcripts of mono 16 kHz waveforms, each (S,), in the ``languages`` of the speech."""
        ...


def load_recogniser(name: str) -> Recogniser:
    """Load the recogniser of an encoder: a hub id, a folder, or ``lab``. Raises `ModelError` if it has none."""
    from transformers import AutoConfig

    folder = resolve(name, "encoder")
    with loading_model("model.encoder", folder):
        family = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    try:
        return WhisperRecogniser(name) if family == "whisper" else CTCRecogniser(name)
    except ModelError as error:
        raise ModelError(f"the encoder cannot transcribe for a cascade. {error}") from error


class CTCRecogniser:
    """Greedy CTC decoding with a model whose labels are characters. ``source`` identifies the model and its weights."""

    def __init__(self, name: str) -> None:
        """Load a hub id, a folder, or ``lab``. Raises `ModelError` if the model has no usable CTC head."""
        self._ctc = Aligner.load(name)
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(name, "encoder"), trust_remote_code=False)
        self.source = self._ctc.source

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor], languages: Sequence[str | None] = ()) -> list[str]:
        """Return the transcripts of mono 16 kHz waveforms, each (S,); empty if nothing is recognised.

        The model knows its language, so that ``languages`` are ignored.
        """
        frames = self._ctc.encoder(pad(list(waveforms)).to(self._ctc.device))
        best = self._ctc.head(frames.values).argmax(-1).masked_fill(~frames.mask, self._ctc.blank)  # (B, T)
        return [text.strip() for text in self._tokenizer.batch_decode(best)]  # merges repeats, drops blanks


class CascadeCollator:
    """Collate utterances with recognised text in place of their transcripts; `Batch.samples` keep the transcripts.

    Each stretch of audio is recognised once. As a decoder (`generate_batch`), it answers with the recognised text
    itself, without an LLM.
    """

    def __init__(self, collate: Collator, recogniser: Recogniser) -> None:
        self.collate, self.recogniser = collate, recogniser
        self._heard: dict[tuple[object, ...], str] = {}

    def __call__(self, items: list[Utterance | Skipped]) -> Batch:
        """Return a batch whose ``text`` is the recognised text."""
        utterances = [item for item in items if isinstance(item, Utterance)]
        self._hear(utterances)
        texts = [self._heard[_place(item.sample)] for item in utterances]
        texts = [text if self.collate.prompter.content_ids(text) else EMPTY_TRANSCRIPT for text in texts]
        changed = [replace(u, sample=replace(u.sample, text=text)) for u, text in zip(utterances, texts, strict=True)]
        batch = self.collate([*changed, *(item for item in items if isinstance(item, Skipped))])
        return replace(batch, samples=[item.sample for item in utterances])

    def generate_batch(self, batch: Batch, **decoding: Any) -> list[str]:
        """Return the recognised text of each sample of a batch that this object collated."""
        return [self._heard[_place(sample)] for sample in batch.samples]

    def _hear(self, utterances: Sequence[Utterance]) -> None:
        """Recognise the utterances that are new."""
        new = {_place(item.sample): item for item in utterances}
        new = {place: item for place, item in new.items() if place not in self._heard}
        if new:
            waveforms = [item.waveform for item in new.values() if item.waveform is not None]
            languages = [item.sample.language for item in new.values()]
            self._heard |= zip(new, self.recogniser(waveforms, languages), strict=True)


def _place(sample: Sample) -> tuple[object, ...]:
    return sample.audio, sample.start_s, sample.end_s
