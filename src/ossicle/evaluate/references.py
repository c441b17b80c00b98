"""Read the references of hypotheses afresh from a manifest, which may have been corrected since decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest
from ossicle.errors import HypothesesError
from ossicle.evaluate.hypotheses import Hypothesis, Key
from ossicle.evaluate.inputs import input_hashes


def references_of(sample: Sample) -> tuple[str, ...]:
    """Return the references of a sample: its answers or, for speech recognition, its transcript."""
    if sample.answers:
        return sample.answers
    return (sample.text,) if sample.task in (None, "asr") and sample.text is not None else ()


def hypothesis_of(sample: Sample, answer: str = "", input_hash: str | None = None) -> Hypothesis:
    """Return the line of a file of hypotheses for the answer to ``sample``."""
    return Hypothesis(
        id=sample.id,
        task=sample.task,
        instruction=sample.instruction,
        language=sample.language,
        target_language=sample.target_language,
        audio=str(sample.audio),
        speaker=sample.speaker,
        text=sample.text,
        references=references_of(sample),
        hypothesis=answer,
        input_hash=input_hash,
    )


def with_references(lines: Iterable[Hypothesis], manifests: Sequence[Path]) -> list[Hypothesis]:
    """Return ``lines`` with the references, transcripts and languages that ``manifests`` have now.

    Raises:
        HypothesesError: a line is not in the manifests, or it answers another recording or instruction.
        ManifestError: a manifest is invalid.
    """
    samples: dict[Key, Sample] = {}
    for path in manifests:
        for sample in read_manifest(path):
            samples[hypothesis_of(sample).key] = sample
    lines = list(lines)
    names = ", ".join(map(str, manifests))
    for line in lines:
        if line.key not in samples:
            raise HypothesesError(
                f"{line.source}: {line.id!r} with this task and instruction is not in {names}; give its manifest"
            )
    found = [samples[line.key] for line in lines]
    heard, read = input_hashes(found), input_hashes(found, from_text=True)
    fresh = []
    for line, sample, *hashes in zip(lines, found, heard, read, strict=True):
        if line.input_hash is not None and line.input_hash not in hashes:
            raise HypothesesError(
                f"{line.source}: {line.id!r} answers other audio than that of {sample.source}; "
                "run `ossicle evaluate` again"
            )
        fresh.append(replace(hypothesis_of(sample, line.hypothesis, line.input_hash), source=line.source))
    return fresh
