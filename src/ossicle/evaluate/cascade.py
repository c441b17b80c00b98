"""The cascade, a baseline: the encoder's own CTC head writes down what it hears, and the LLM reads that."""

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

NOTHING_HEARD = "."
"""What the LLM reads where nothing was recognised: without a token it could not answer at all."""


class Recogniser:
    """Greedy transcripts of a CTC model with characters as labels. ``source`` names it, down to its weights."""

    def __init__(self, name: str) -> None:
        """Load a hub id or a folder, or ``lab``. Raises `ValueError` as `Aligner.load` does."""
        self._ctc = Aligner.load(name)
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(name, "encoder"))
        self.source = self._ctc.source

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Transcripts of mono 16 kHz ``waveforms``, each (S,); empty where nothing is recognised."""
        frames = self._ctc.encoder(pad(list(waveforms)).to(self._ctc.device))
        best = self._ctc.head(frames.values).argmax(-1).masked_fill(~frames.mask, self._ctc.blank)  # (B, T)
        return [text.strip() for text in self._tokenizer.batch_decode(best)]  # merges repeats, drops blanks


class CascadeCollator:
    """Collates with what the recogniser heard in the place of the transcripts; the samples keep their own."""

    def __init__(self, collate: Collator, recogniser: Recogniser) -> None:
        self.collate, self.recogniser = collate, recogniser

    def __call__(self, items: list[Utterance | Skipped]) -> Batch:
        """A batch whose ``text`` is what was heard."""
        read = [item for item in items if isinstance(item, Utterance)]
        heard = self.recogniser([item.waveform for item in read if item.waveform is not None]) if read else []
        texts = [text if self.collate.prompter.ids(text) else NOTHING_HEARD for text in heard]
        altered = [replace(item, sample=replace(item.sample, text=t)) for item, t in zip(read, texts, strict=True)]
        batch = self.collate([*altered, *(item for item in items if isinstance(item, Skipped))])
        return replace(batch, samples=[item.sample for item in read])
