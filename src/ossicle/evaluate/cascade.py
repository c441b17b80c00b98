"""Decode with a cascade, the baseline: the encoder's CTC head transcribes, and the LLM reads the transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ossicle.align.aligner import Aligner
from ossicle.batch import Batch, Skipped, Utterance, pad
from ossicle.data.collate import Collator
from ossicle.models.frozen import resolve

EMPTY_TRANSCRIPT = "."
"""Text for the LLM if nothing was recognised, because the LLM needs at least one token."""


class Recogniser:
    """Greedy CTC decoding with a model whose labels are characters. ``source`` identifies the model and its weights."""

    def __init__(self, name: str) -> None:
        """Load a hub id, a folder, or ``lab``. Raises `ModelError` if the model has no usable CTC head."""
        self._ctc = Aligner.load(name)
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(name, "encoder"))
        self.source = self._ctc.source

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Return the transcripts of mono 16 kHz waveforms, each (S,); empty if nothing is recognised."""
        frames = self._ctc.encoder(pad(list(waveforms)).to(self._ctc.device))
        best = self._ctc.head(frames.values).argmax(-1).masked_fill(~frames.mask, self._ctc.blank)  # (B, T)
        return [text.strip() for text in self._tokenizer.batch_decode(best)]  # merges repeats, drops blanks


class CascadeCollator:
    """Collate utterances with recognised text in place of their transcripts; `Batch.samples` keep the transcripts."""

    def __init__(self, collate: Collator, recogniser: Recogniser) -> None:
        self.collate, self.recogniser = collate, recogniser

    def __call__(self, items: list[Utterance | Skipped]) -> Batch:
        """Return a batch whose ``text`` is the recognised text."""
        utterances = [item for item in items if isinstance(item, Utterance)]
        waveforms = [item.waveform for item in utterances if item.waveform is not None]
        recognised = self.recogniser(waveforms) if utterances else []
        texts = [text if self.collate.prompter.content_ids(text) else EMPTY_TRANSCRIPT for text in recognised]
        changed = [replace(u, sample=replace(u.sample, text=text)) for u, text in zip(utterances, texts, strict=True)]
        batch = self.collate([*changed, *(item for item in items if isinstance(item, Skipped))])
        return replace(batch, samples=[item.sample for item in utterances])
