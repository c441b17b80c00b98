"""Decodes a dataset into ``hypotheses.jsonl``, line by line, so that a killed run picks up where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ossicle.batch import Batch, Sample
from ossicle.data.dataset import Skipped, Utterance, known_duration_s
from ossicle.errors import HypothesesError
from ossicle.evaluate.hypotheses import Hypothesis, Key, parse_line

MAX_NEW_TOKENS = 200
"""The paper's limit on the length of an answer."""


class Decoder(Protocol):
    """What decoding needs of a model; `ossicle.models.speech_llm.SpeechLLM` has it."""

    def generate_batch(self, batch: Batch, **decoding: Any) -> list[str]:
        """One answer per sample of the batch, cut at the end of the turn or the line."""
        ...


class Utterances(Protocol):
    """What decoding needs of a dataset: a `SpeechDataset`, or one with cached frames."""

    samples: list[Sample]

    def __getitem__(self, index: int) -> Utterance | Skipped:
        """The utterance of ``samples[index]``, or why it cannot be read."""
        ...


Collate = Callable[[list[Utterance | Skipped]], Batch]
"""Makes a batch of what could be read: `ossicle.data.collate.Collator`."""


@dataclass
class DecodeReport:
    """What a call of `decode` did with its dataset."""

    already_there: int
    """Utterances found in the file of an earlier, interrupted run."""
    decoded: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    """Utterances that could not be read now, and why. What the dataset left out when it was made, it reports itself."""


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
    """Appends one line per utterance to ``out_path``, written to disk as soon as its batch is done, longest first.

    ``decoding`` goes to ``model.generate_batch`` (``max_new_tokens``, 200 by default, ``from_text``, ...). Utterances
    that the file holds already are left alone. ``fingerprint`` names the checkpoint; ``<name>.meta.json`` keeps it and
    ``decoding`` beside the file, so that the answers of two models or settings never end up in one file.

    Raises:
        HypothesesError: the file belongs to another checkpoint, setting or dataset, or is malformed.
    """
    decoding = {"max_new_tokens": MAX_NEW_TOKENS, **decoding}
    _claim(out_path, {"fingerprint": fingerprint, "decoding": decoding})
    durations_s = [known_duration_s(sample) for sample in dataset.samples]
    pending = _pending(dataset.samples, durations_s, out_path)
    report = DecodeReport(already_there=len(dataset.samples) - len(pending))
    console, started = Console(stderr=True), time.perf_counter()
    with _progress(console) as progress, out_path.open("a", encoding="utf-8") as out:
        bar = progress.add_task("decoding", total=sum(durations_s[i] for i in pending), speed=0)
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
            progress.update(bar, advance=sum(durations_s[i] for i in indices), speed=report.audio_s / report.wall_s)
    _print_report(report, out_path, console)
    return report


def references_of(sample: Sample) -> tuple[str, ...]:
    """What an answer is judged against: the sample's answers or, for speech recognition, its transcript."""
    if sample.answers:
        return sample.answers
    return (sample.text,) if sample.task in (None, "asr") and sample.text is not None else ()


def meta_path(out_path: Path) -> Path:
    """``hypotheses.jsonl`` -> ``hypotheses.meta.json``."""
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
    """Indices still to decode, longest utterance first: too large a batch fails at once, and padding stays small."""
    first: dict[Key, Sample] = {}
    for sample in samples:
        twin = first.setdefault(_hypothesis(sample, "").key, sample)
        if twin is not sample:
            raise HypothesesError(
                f"{sample.source}: {sample.id!r} with this task and instruction is at {twin.source} already; "
                "give one of the two another id"
            )
    done = _keys_in(out_path)
    if foreign := done - first.keys():
        raise HypothesesError(
            f"{out_path}: holds {len(foreign)} utterances that this dataset does not; decode into another file"
        )
    pending = [index for index, key in enumerate(first) if key not in done]
    return sorted(pending, key=lambda index: -durations_s[index])


def _claim(out_path: Path, meta: dict[str, Any]) -> None:
    """Writes the meta file of a new run, or checks that an old one is of this run."""
    path = meta_path(out_path)
    fix = f"decode into another file, or delete {out_path.name} and {path.name}"
    if not out_path.exists():
        out_path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        return
    if not path.is_file():
        raise HypothesesError(f"{out_path}: there is no {path.name} to say which model wrote it; {fix}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise HypothesesError(f"{path}: not JSON ({error}); {fix}") from error
    if found != meta:
        raise HypothesesError(f"{out_path}: written with {found}, this run has {meta}; {fix}")


def _keys_in(out_path: Path) -> set[Key]:
    """Keys of the lines an earlier run wrote; a last line cut short by a kill is removed from the file."""
    if not out_path.exists():
        return set()
    content = out_path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with out_path.open("rb+") as file:
            file.truncate(len(whole))
    lines = enumerate(whole.splitlines(), start=1)
    return {parse_line(line, f"{out_path}:{number}").key for number, line in lines if line.strip()}


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} s of audio"),
        TextColumn("{task.fields[speed]:.1f} audio-s/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _print_report(report: DecodeReport, out_path: Path, console: Console) -> None:
    there = f" ({report.already_there} more were there already)" if report.already_there else ""
    lines = [
        f"{out_path}: {report.decoded} utterances{there}, {report.audio_s:.0f} s of audio in {report.wall_s:.0f} s"
    ]
    if report.skipped:
        lines += [f"{len(report.skipped)} utterances have no hypothesis:", *map(str, report.skipped)]
    console.print("\n  ".join(lines), markup=False, highlight=False, soft_wrap=True)
