"""Decode with an LLM that reads the transcripts: the upper bound of the tests, and targets of stage 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample, Utterance
from ossicle.data.collate import Collator
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.evaluate.decode import decode
from ossicle.evaluate.hypotheses import read_hypotheses
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
    _decode(SpeechLLM.from_pretrained(checkpoint), read_manifest(manifest), out, max_new_tokens)


def write_own_answers(model: SpeechLLM, samples: Sequence[Sample], out: Path) -> None:
    """Write a manifest of stage 2 whose targets are the LLM's own answers to the transcripts of ``samples``.

    A model that is trained on them learns to react to speech as its LLM reacts to text. The `OPEN_INSTRUCTIONS` take
    turns. The answers are kept beside the manifest ``out``, so that a stopped call continues.
    """
    asked = [
        replace(
            sample,
            id=f"{sample.id}-own",
            task="own",
            instruction=OPEN_INSTRUCTIONS[number % len(OPEN_INSTRUCTIONS)],
            answers=("?",),  # files of hypotheses need a reference
            target_language=sample.language,
        )
        for number, sample in enumerate(samples)
    ]
    kept = out.parent / "own-answers" / "answers.jsonl"
    _decode(model, asked, kept, OPEN_TOKENS)
    answers = {line.id: line.hypothesis.strip() for line in read_hypotheses(kept)}
    lengths = {sample.id: len(model.llm.tokenizer(answers[sample.id]).input_ids) for sample in asked}
    whole = [replace(sample, answers=(answers[sample.id],)) for sample in asked if 0 < lengths[sample.id] < OPEN_TOKENS]
    write_manifest(out, whole)


def _decode(model: SpeechLLM, samples: list[Sample], out: Path, max_new_tokens: int) -> None:
    collate, device = Collator(model.prompter()), next(model.projector.parameters()).device
    decode(
        model,
        Texts(samples),
        lambda items: collate(items).to(device),
        out,
        fingerprint=fingerprint(model.llm),
        from_text=True,
        max_new_tokens=max_new_tokens,
    )
