"""`ossicle align`: a manifest in, the same with word times out; from a CTC model, or from files of another aligner."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ossicle.align.aligner import Aligner, Alignment
from ossicle.align.word_files import read_ctm, read_textgrid
from ossicle.batch import Sample, Skipped, Utterance
from ossicle.data.dataset import SpeechDataset, known_duration_s
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.data.words import (
    WORDS_FROM,
    WordTime,
    spoken_words,
    with_words,
    without_punctuation,
    words_of,
)
from ossicle.errors import AlignmentError, WordFileError

SCORE = "words_score"
"""Field of a manifest line: `Alignment.score`."""

SAVE_EVERY_S = 60.0
"""How much work a killed run can lose."""

LEAST_AGREEMENT = 0.5
"""Share of words that an aligner's file and the transcript must have in common."""

Key = tuple[str, float, float | None, str | None]
Aligned = dict[Key, Alignment]


@dataclass
class AlignReport:
    """What a call did."""

    samples: list[Sample] = field(default_factory=list)
    """With their word times, in the order of the manifest."""
    skipped: list[Skipped] = field(default_factory=list)
    already_there: int = 0
    """Utterances that an earlier call had aligned."""

    def summary(self) -> str:
        """Counts, the mean score and the utterance that scores lowest; then what was skipped."""
        words = [word for sample in self.samples for word in words_of(sample)]
        guessed = sum(not word.aligned for word in words)
        there = f" ({self.already_there} were aligned before)" if self.already_there else ""
        lines = [f"{len(self.samples)} utterances{there}, {len(words)} words, {guessed} of them interpolated"]
        scored = [sample for sample in self.samples if SCORE in sample.extra]
        if scored:
            worst = min(scored, key=lambda sample: sample.extra[SCORE])
            mean = sum(sample.extra[SCORE] for sample in scored) / len(scored)
            lines.append(f"score (log-probability of a label): mean {mean:.2f}, {worst.id} {worst.extra[SCORE]:.2f}")
        if self.skipped:
            lines += [f"{len(self.skipped)} utterances left out:", *map(str, self.skipped)]
        return "\n  ".join(lines)


def align_manifest(
    manifest: Path, out: Path, aligner: Aligner, *, batch_size: int = 16, skip_broken: bool = False
) -> AlignReport:
    """Write ``manifest`` with the word times that ``aligner`` finds to ``out``, which appears once it is complete.

    A call that was interrupted continues, and what ``out`` holds from the same model is kept. Lines that share speech
    and text (several tasks) are aligned once.

    Raises:
        DataError: an audio file cannot be used (left out with ``skip_broken``).
        AlignmentError: a text does not fit its speech (left out with ``skip_broken``).
    """
    _check_out(manifest, out)
    dataset = SpeechDataset(
        read_manifest(manifest), max_duration_s=math.inf, on_error="skip" if skip_broken else "raise"
    )
    partial = out.with_name(f".{out.name}.partial")
    done = _aligned_before(out, aligner) | _aligned_before(partial, aligner)
    already_there = sum(_key(sample) in done for sample in dataset.samples)
    saved_at = time.monotonic()
    try:
        for _ in _align_rest(dataset, aligner, done, batch_size):
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                write_manifest(partial, _finished(dataset, aligner, done))
                saved_at = time.monotonic()
    except BaseException:  # an interrupt above all: what is done stays done
        write_manifest(partial, _finished(dataset, aligner, done))
        raise
    samples = _finished(dataset, aligner, done)
    write_manifest(out, samples)
    partial.unlink(missing_ok=True)
    return AlignReport(samples, dataset.skipped, already_there)


def import_words(manifest: Path, out: Path, source: Path, *, skip_broken: bool = False) -> AlignReport:
    """Write ``manifest`` with the word times of ``source`` to ``out``: a folder of TextGrids, or a CTM file.

    A TextGrid or a CTM recording is found by the line's id, its times then count from the start of the utterance; or by
    the name of the audio file, its times then count from the start of that file, and a segment gets its own words.

    Raises:
        WordFileError: a file is wrong; or (left out with ``skip_broken``) an utterance has none, or other words.
    """
    _check_out(manifest, out)
    find = _textgrids(source) if source.is_dir() else _ctm(source)
    words_from = "textgrid" if source.is_dir() else "ctm"
    report = AlignReport()
    for sample in track(read_manifest(manifest), "importing", transient=True, disable=not Console().is_terminal):
        try:
            words = _matched(sample, _own(sample, *find(sample)))
        except _Unmatched as error:
            if not skip_broken:
                raise WordFileError(f"{sample.source}: {sample.id!r} {error}. {_FIX}") from error
            report.skipped.append(Skipped(sample, str(error)))
        else:
            report.samples.append(with_words(sample, words, words_from))
    write_manifest(out, report.samples)
    return report


_FIX = "Correct it, remove the line, or leave such lines out with --skip-broken."


class _Unmatched(ValueError):
    """An utterance for which the files have no fitting words."""


def _check_out(manifest: Path, out: Path) -> None:
    if out.resolve() == manifest.resolve():
        raise ValueError(f"--out {out} is the manifest itself; write to another file")


def _key(sample: Sample) -> Key:
    return os.path.abspath(sample.audio), sample.start_s, sample.end_s, sample.text  # noqa: PTH100 - not through links


def _aligned_before(path: Path, aligner: Aligner) -> Aligned:
    """What an earlier call with the same model wrote to ``path``."""
    if not path.exists():
        return {}
    return {
        _key(sample): Alignment(tuple(words_of(sample)), sample.extra[SCORE])
        for sample in read_manifest(path)
        if sample.extra.get(WORDS_FROM) == aligner.source
    }


def _align_rest(dataset: SpeechDataset, aligner: Aligner, done: Aligned, batch_size: int) -> Iterator[None]:
    """Add to ``done`` what it lacks, a batch at a time, longest first: too large a batch fails at once."""
    first = {_key(sample): index for index, sample in reversed(list(enumerate(dataset.samples)))}
    pending = [index for key, index in first.items() if key not in done]
    pending.sort(key=lambda index: -known_duration_s(dataset.samples[index]))
    for indices in _batches(pending, batch_size):
        items = [dataset[index] for index in indices]
        utterances = [item for item in items if isinstance(item, Utterance)]
        results = aligner.align(utterances) if utterances else []
        for utterance, result in zip(utterances, results, strict=True):
            if isinstance(result, Alignment):
                done[_key(utterance.sample)] = result
        broken = [item for item in (*items, *results) if isinstance(item, Skipped)]
        if broken and dataset.on_error == "raise":
            sample = broken[0].sample
            raise AlignmentError(f"{sample.source}: {sample.id!r} ({sample.audio}): {broken[0].reason}. {_FIX}")
        dataset.record(broken)
        yield


def _finished(dataset: SpeechDataset, aligner: Aligner, done: Aligned) -> list[Sample]:
    return [
        with_words(sample, found.words, aligner.source, **{SCORE: round(found.score, 3)})
        for sample in dataset.samples
        if (found := done.get(_key(sample))) is not None
    ]


def _batches(pending: list[int], batch_size: int) -> Iterator[list[int]]:
    starts = range(0, len(pending), batch_size)
    console = Console(stderr=True)
    for start in track(starts, "aligning", console=console, transient=True, disable=not console.is_terminal):
        yield pending[start : start + batch_size]


Found = tuple[Sequence[WordTime], bool]
"""Words, and whether their times count from the start of the audio file rather than of the utterance."""


def _textgrids(folder: Path) -> Callable[[Sample], Found]:
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.[tT]ext[gG]rid")):
        by_name.setdefault(path.stem, []).append(path)

    def find(sample: Sample) -> Found:
        name = sample.id if sample.id in by_name else sample.audio.stem
        paths = by_name.get(name, [])
        if len(paths) > 1:  # aligners keep a folder for each speaker
            paths = [path for path in paths if path.parent.name == sample.speaker] or paths
        if len(paths) > 1:
            raise _Unmatched(f"has {len(paths)} TextGrids: {paths[0]}, {paths[1]}")
        if not paths:
            raise _Unmatched(f"has no TextGrid {sample.id}.TextGrid or {sample.audio.stem}.TextGrid below {folder}")
        return read_textgrid(paths[0], speaker=sample.speaker), name != sample.id

    return find


def _ctm(path: Path) -> Callable[[Sample], Found]:
    recordings = read_ctm(path)

    def find(sample: Sample) -> Found:
        name = sample.id if sample.id in recordings else sample.audio.stem
        if name not in recordings:
            raise _Unmatched(f"has no recording {sample.id} or {sample.audio.stem} in {path}")
        return recordings[name], name != sample.id

    return find


def _own(sample: Sample, words: Sequence[WordTime], of_file: bool) -> list[WordTime]:
    """The words within the sample's segment, in times from its start."""
    if not of_file:
        return list(words)
    end_s = math.inf if sample.end_s is None else sample.end_s
    return [
        WordTime(
            word.word, max(word.start_s - sample.start_s, 0.0), min(word.end_s, end_s) - sample.start_s, word.aligned
        )
        for word in words
        if sample.start_s <= (word.start_s + word.end_s) / 2 < end_s
    ]


def _matched(sample: Sample, words: Sequence[WordTime]) -> list[WordTime]:
    """The words in the transcript's spelling where both have as many; raises `_Unmatched` for another text's words."""
    if not words:
        raise _Unmatched("has no words there")
    if sample.text is None:
        return list(words)
    written = spoken_words(sample.text)
    heard, stated = (
        [without_punctuation(word).lower() for word in side] for side in ([w.word for w in words], written)
    )
    agreement = SequenceMatcher(None, heard, stated, autojunk=False).ratio()
    if agreement < LEAST_AGREEMENT:
        raise _Unmatched(f"has other words there: {' '.join(heard[:6])!r}, its text has {' '.join(stated[:6])!r}")
    if len(words) != len(written):
        return list(words)
    return [
        WordTime(spelling, word.start_s, word.end_s, word.aligned)
        for spelling, word in zip(written, words, strict=True)
    ]
