"""Decode a dataset into a file of hypotheses. An interrupted call resumes where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from ossicle.batch import Batch, Sample, Skipped, Utterance
from ossicle.data.dataset import known_duration_s
from ossicle.errors import HypothesesError
from ossicle.evaluate.hypotheses import Hypothesis, Key, parse_line
from ossicle.files import write_json
from ossicle.progress import Progress

MAX_NEW_TOKENS = 200
"""Default maximum length of an answer in tokens, as in the paper."""


class Decoder(Protocol):
    """Interface of a model that can be decoded, such as `ossicle.models.speech_llm.SpeechLLM`."""

    def generate_batch(self, batch: Batch, **decoding: Any) -> list[str]:
        """Return one answer per sample of the batch, cut at the end of the turn or the line."""
        ...


class Utterances(Protocol):
    """Interface of a dataset: a `SpeechDataset`, or one that returns cached frames."""

    samples: list[Sample]

    def __getitem__(self, index: int) -> Utterance | Skipped:
        """Return the utterance of ``samples[index]``, or the reason why it cannot be read."""
        ...


Collate = Callable[[list[Utterance | Skipped]], Batch]
"""Function that makes a batch of loaded utterances, such as `ossicle.data.collate.Collator`."""


@dataclass
class DecodeReport:
    """Counts of one call of `decode`."""

    already_decoded: int
    """Utterances that an earlier, interrupted call had decoded."""
    decoded: int = 0
    """Utterances that this call decoded."""
    audio_s: float = 0.0
    wall_s: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    """Utterances that could not be read. The dataset itself reports those it rejected at construction."""


def decode(
    model: Decoder,
    dataset: Utterances,
    collate: Collate,
    out_path: Path,
    *,
    fingerprint: str,
    batch_size: int = 16,
    **decoding: Any,
) -> DecodeReport:
    """Append one line per utterance to ``out_path``, longest utterance first.

    Each batch is written as soon as it is decoded. Utterances that the file holds already are skipped.
    ``<name>.meta.json`` records the fingerprint and the decoding settings, so that one file never mixes two models.

    Args:
        model: decoder of the batches.
        dataset: utterances to decode.
        collate: function that makes a batch of utterances.
        out_path: file of hypotheses.
        fingerprint: identity of the checkpoint.
        batch_size: utterances per batch.
        **decoding: arguments of ``model.generate_batch``, e.g. ``from_text``; ``max_new_tokens`` is 200 by default.

    Raises:
        HypothesesError: the file is invalid, or belongs to another checkpoint, setting or dataset.
    """
    decoding = {"max_new_tokens": MAX_NEW_TOKENS, **decoding}
    _check_meta(out_path, {"fingerprint": fingerprint, "decoding": decoding})
    durations_s = [known_duration_s(sample) for sample in dataset.samples]
    pending = _pending(dataset.samples, durations_s, out_path)
    report = DecodeReport(already_decoded=len(dataset.samples) - len(pending))
    started, total_s = time.perf_counter(), sum(durations_s[i] for i in pending)
    with Progress("decoding", total_s, unit="s of audio") as progress, out_path.open("a", encoding="utf-8") as out:
        for start in range(0, len(pending), batch_size):
            indices = pending[start : start + batch_size]
            items = [dataset[i] for i in indices]
            report.skipped += [item for item in items if isinstance(item, Skipped)]
            batch = collate(items)
            if batch.samples:
                _write(out, batch.samples, model.generate_batch(batch, **decoding))
            report.decoded += len(batch)
            report.audio_s += batch.audio_s
            report.wall_s = time.perf_counter() - started
            progress.advance(sum(durations_s[i] for i in indices))
        progress.say(_describe(report, out_path))
    return report


def references_of(sample: Sample) -> tuple[str, ...]:
    """Return the references of a sample: its answers or, for speech recognition, its transcript."""
    if sample.answers:
        return sample.answers
    return (sample.text,) if sample.task in (None, "asr") and sample.text is not None else ()


def meta_path(out_path: Path) -> Path:
    """Return the meta file of a file of hypotheses: ``NAME.meta.json`` for ``NAME.jsonl``."""
    return out_path.with_suffix(".meta.json")


def _hypothesis(sample: Sample, answer: str) -> Hypothesis:
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
    )


def _write(out: TextIO, samples: Sequence[Sample], answers: Sequence[str]) -> None:
    for sample, answer in zip(samples, answers, strict=True):
        out.write(_hypothesis(sample, answer).to_json() + "\n")
    out.flush()


def _pending(samples: Sequence[Sample], durations_s: Sequence[float], out_path: Path) -> list[int]:
    """Return the indices still to decode, longest utterance first.

    This order makes a batch that is too large fail at once, and it keeps the padding small.
    """
    first: dict[Key, Sample] = {}
    for sample in samples:
        twin = first.setdefault(_hypothesis(sample, "").key, sample)
        if twin is not sample:
            raise HypothesesError(
                f"{sample.source}: {sample.id!r} with this task and instruction is at {twin.source} already; "
                "give one of the two another id"
            )
    done = _decoded_keys(out_path)
    if foreign := done - first.keys():
        raise HypothesesError(
            f"{out_path}: holds {len(foreign)} utterances that this dataset does not; decode into another file"
        )
    pending = [index for index, key in enumerate(first) if key not in done]
    return sorted(pending, key=lambda index: -durations_s[index])


def _check_meta(out_path: Path, meta: dict[str, Any]) -> None:
    """Write the meta file of a new file of hypotheses, or check that the existing one equals ``meta``."""
    path = meta_path(out_path)
    fix = f"decode into another file, or delete {out_path.name} and {path.name}"
    if not out_path.exists():
        out_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, meta)
        return
    if not path.is_file():
        raise HypothesesError(f"{out_path}: no {path.name} beside it says which model wrote it; {fix}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise HypothesesError(f"{path}: not JSON ({error}); {fix}") from error
    if found != meta:
        raise HypothesesError(f"{out_path}: written with {found}, but this run has {meta}; {fix}")


def _decoded_keys(out_path: Path) -> set[Key]:
    """Return the keys of the lines in the file, after removing a last line that an interruption cut short."""
    if not out_path.exists():
        return set()
    content = out_path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with out_path.open("rb+") as file:
            file.truncate(len(whole))
    lines = enumerate(whole.splitlines(), start=1)
    return {parse_line(line, f"{out_path}:{number}").key for number, line in lines if line.strip()}


def _describe(report: DecodeReport, out_path: Path) -> str:
    earlier = f" ({report.already_decoded} were decoded before)" if report.already_decoded else ""
    lines = [
        f"{out_path}: decoded {report.decoded} utterances{earlier}, "
        f"{report.audio_s:.0f} s of audio in {report.wall_s:.0f} s"
    ]
    if report.skipped:
        lines += [f"{len(report.skipped)} utterances have no hypothesis:", *map(str, report.skipped)]
    return "\n  ".join(lines)
