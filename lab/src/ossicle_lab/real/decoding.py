"""Decode with an LLM that reads the transcripts: the upper bound of the tests, and targets of stage 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample, Utterance
from ossicle.corpora.self_answers import AnswerOptions, prepare_answers
from ossicle.data.collate import Collator
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.evaluate.decode import decode
from ossicle.models.frozen import fingerprint
from ossicle.models.speech_llm import SpeechLLM

OPEN_INSTRUCTIONS = ("What is this about?", "Continue the sentence.", "Say this in other words.")
"""Instructions without a single right answer. The target is what the LLM itself answers to the transcript."""
OPEN_TOKENS = 32
"""Longest own answer in tokens; longer ones are left out, because their end would be missing."""


@dataclass
class Texts:
    """Utterances whose audio is not read, for an LLM that reads transcripts (`ossicle.evaluate.decode.Utterances`)."""

    samples: list[Sample]

    def __getitem__(self, index: int) -> Utterance:
        """Return the sample with silence in place of its speech."""
        return Utterance(self.samples[index], torch.zeros(SAMPLE_RATE_HZ))


def decode_text(checkpoint: Path, manifest: Path, out: Path, *, max_new_tokens: int) -> None:
    """Write the answers of the LLM of ``checkpoint`` to the transcripts of ``manifest`` to ``out``.

    A second call continues. Raises `HypothesesError` if ``out`` belongs to another LLM or manifest.
    """
    model = SpeechLLM.from_pretrained(checkpoint)
    collate, device = Collator(model.prompter()), next(model.projector.parameters()).device
    decode(
        model,
        Texts(read_manifest(manifest)),
        lambda items: collate(items).to(device),
        out,
        fingerprint=fingerprint(model.llm),
        from_text=True,
        max_new_tokens=max_new_tokens,
    )


def write_own_answers(model: SpeechLLM, samples: Sequence[Sample], out: Path) -> None:
    """Write a manifest of stage 2 whose targets are the LLM's own answers to the transcripts of ``samples``.

    A model that is trained on them learns to react to speech as its LLM reacts to text. Each utterance has one of the
    `OPEN_INSTRUCTIONS`. The transcripts are written beside ``out``. A stopped call continues. Raises `DataError` if no
    answer can be used.
    """
    transcripts = out.with_name(f"{out.stem}-transcripts.jsonl")
    write_manifest(transcripts, samples)
    options = AnswerOptions(
        instructions=OPEN_INSTRUCTIONS, per_utterance=1, max_new_tokens=OPEN_TOKENS, turn=model.config.turn
    )
    prepare_answers(transcripts, out, model.llm, options)
