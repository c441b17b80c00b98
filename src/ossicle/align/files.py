"""Add word times to a manifest, from a CTC model or from the files of another aligner (`ossicle align`)."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path

from ossicle.align.aligner import Aligner, Alignment
from ossicle.align.word_files import read_ctm, read_textgrid
from ossicle.batch import Sample, Skipped, Utterance
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.data.table import open_manifests
from ossicle.data.words import (
    WORDS_FROM,
    WordTime,
    spoken_words,
    with_words,
    without_punctuation,
    words_of,
)
from ossicle.errors import AlignmentError, ConfigError, WordFileError
from ossicle.progress import track
from ossicle.shards import Shard, describe_missing, joining

SCORE = "words_score"
"""Manifest field that holds `Alignment.score`."""

SAVE_EVERY_S = 60.0
"""Time between two writes of the partial result, in seconds. A killed run loses at most this much work."""

MIN_AGREEMENT = 0.5
"""Smallest similarity (0 to 1) between the words of an aligner's file and those of the transcript."""

Key = tuple[str, float, float | None, str | None]
Aligned = dict[Key, Alignment]


@dataclass
class AlignReport:
    """The result of `align_manifest` or `import_words`."""

    samples: list[Sample] = field(default_factory=list)
    """Lines with word times, in the order of the manifest."""
    skipped: list[Skipped] = field(default_factory=list)
    """Lines that were left out."""
    already_aligned: int = 0
    """Number of utterances that an earlier call aligned."""
    waiting: str = ""
    """A line with the shards that are not finished; empty if all are, and the output is written."""

    def summary(self) -> str:
        """Return the counts, the mean score, the utterance with the lowest score, and the skipped utterances."""
        if self.waiting:
            return self.waiting
        words = [word for sample in self.samples for word in words_of(sample)]
        guessed = sum(not word.aligned for word in words)
        before = f" ({self.already_aligned} were aligned before)" if self.already_aligned else ""
        lines = [f"{len(self.samples)} utterances{before}, {len(words)} words, {guessed} of them interpolated"]
        scored = [sample for sample in self.samples if SCORE in sample.extra]
        if scored:
            worst = min(scored, key=lambda sample: sample.extra[SCORE])
            mean = sum(sample.extra[SCORE] for sample in scored) / len(scored)
            lines.append(
                f"score (log-probability of a label): mean {mean:.2f}, lowest {worst.extra[SCORE]:.2f} ({worst.id})"
            )
        if self.skipped:
            lines += [f"{len(self.skipped)} utterances left out:", *map(str, self.skipped)]
        return "\n  ".join(lines)


def align_manifest(
    manifest: Path,
    out: Path,
    aligner: Aligner,
    *,
    batch_size: int = 16,
    skip_broken: bool = False,
    shard: Shard | None = None,
) -> AlignReport:
    """Write ``manifest`` with the word times that ``aligner`` finds to ``out``.

    ``out`` is created when all lines are aligned. An interrupted call resumes, and lines of ``out`` that the same
    model aligned are reused. Lines that share speech and text (several tasks) are aligned once. With ``shard``, the
    call aligns every N-th batch, and the last of the N calls creates ``out``.

    Raises:
        DataError: an audio file cannot be used (left out with ``skip_broken``).
        AlignmentError: a text does not fit its speech (left out with ``skip_broken``).
    """
    _check_out(manifest, out)
    dataset = SpeechDataset(
        open_manifests([manifest]), max_duration_s=math.inf, on_error="skip" if skip_broken else "raise"
    )
    target = out if shard is None else shard.file(out)
    partial = target.with_name(f".{target.name}.partial")
    done = _aligned_before(target, aligner) | _aligned_before(partial, aligner)
    already_aligned = sum(_key(sample) in done for sample in dataset.samples)
    saved_at = time.monotonic()
    try:
        for _ in _align_rest(dataset, aligner, done, _plan(dataset, done, batch_size, shard)):
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                write_manifest(partial, _finished(dataset, aligner, done))
                saved_at = time.monotonic()
    except BaseException:  # keep finished work, above all after an interrupt
        write_manifest(partial, _finished(dataset, aligner, done))
        raise
    samples = _finished(dataset, aligner, done)
    write_manifest(target, samples)
    partial.unlink(missing_ok=True)
    if shard is not None:
        with joining(out):
            if missing := shard.missing(out):
                return AlignReport(waiting=describe_missing(out, shard, missing))
            parts = [one.file(out) for one in Shard.all_of(shard.count)]
            for part in parts:
                done |= _aligned_before(part, aligner)
            samples = _finished(dataset, aligner, done)
            write_manifest(out, samples)
            for part in parts:
                part.unlink()
    return AlignReport(samples, dataset.skipped, already_aligned)


def align_shard(
    shard: Shard, manifest: Path, out: Path, model: str, batch_size: int = 16, skip_broken: bool = False
) -> None:
    """Align ``shard`` with the CTC model ``model``, which a process loads once for all its shards."""
    if not out.exists():
        align_manifest(manifest, out, _load(model), batch_size=batch_size, skip_broken=skip_broken, shard=shard)


@lru_cache(maxsize=1)
def _load(model: str) -> Aligner:
    return Aligner.load(model)


def import_words(manifest: Path, out: Path, source: Path, *, skip_broken: bool = False) -> AlignReport:
    """Write ``manifest`` with the word times of ``source`` to ``out``.

    ``source`` is a folder of TextGrids or a CTM file. An entry whose name is the id of a line has times from the start
    of the utterance. An entry whose name is that of the audio file has times from the start of that file; each segment
    of the file gets the words within it. Where several audio files have one name, the folder or the speaker decides.

    Raises:
        WordFileError: a file is invalid; or an utterance has no entry or other words (left out with ``skip_broken``).
    """
    _check_out(manifest, out)
    samples = read_manifest(manifest)
    shared = _shared_names(samples)
    find = _textgrids(source, shared) if source.is_dir() else _ctm(source, shared)
    words_from = "textgrid" if source.is_dir() else "ctm"
    report = AlignReport()
    for sample in track(samples, "importing", unit="utterances"):
        try:
            words = _matched(sample, _within_segment(sample, *find(sample)))
        except _Unmatched as error:
            if not skip_broken:
                raise WordFileError(f"{sample.source}: {sample.id!r} {error}. {_FIX}") from error
            report.skipped.append(Skipped(sample, str(error)))
        else:
            report.samples.append(with_words(sample, words, words_from))
    write_manifest(out, report.samples)
    return report


_FIX = "Correct it, remove the line, or skip such lines with --skip-broken."


class _Unmatched(ValueError):
    """The files have no matching words for an utterance."""


def _check_out(manifest: Path, out: Path) -> None:
    if out.resolve() == manifest.resolve():
        raise ConfigError(f"--out {out} is the manifest itself; write to another file")


def _key(sample: Sample) -> Key:
    return os.path.abspath(sample.audio), sample.start_s, sample.end_s, sample.text  # noqa: PTH100 - not through links


def _aligned_before(path: Path, aligner: Aligner) -> Aligned:
    """Return the alignments that an earlier call with the same model wrote to ``path``."""
    if not path.exists():
        return {}
    return {
        _key(sample): Alignment(tuple(words_of(sample)), sample.extra[SCORE])
        for sample in read_manifest(path)
        if sample.extra.get(WORDS_FROM) == aligner.source
    }


def _plan(dataset: SpeechDataset, done: Aligned, batch_size: int, shard: Shard | None) -> list[list[int]]:
    """Return the batches of utterances that are missing in ``done``, longest first: too large a batch fails early.

    Batches of a shard are those of an undivided call, because the other utterances of a batch change its last digits.
    """
    first = {_key(sample): index for index, sample in reversed(list(enumerate(dataset.samples)))}
    missing = {index for key, index in first.items() if key not in done}
    durations_s = dataset.durations_s
    order = sorted(
        first.values() if shard else [i for i in first.values() if i in missing], key=lambda i: -durations_s[i]
    )
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batch for batch in (shard.own(batches) if shard else batches) if not missing.isdisjoint(batch)]


def _align_rest(dataset: SpeechDataset, aligner: Aligner, done: Aligned, batches: list[list[int]]) -> Iterator[None]:
    """Align ``batches`` into ``done``, and yield after each."""
    for indices in track(batches, "aligning", unit="batches"):
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


Found = tuple[Sequence[WordTime], bool]
"""Words, and True if their times count from the start of the audio file instead of the utterance."""


def _textgrids(folder: Path, shared: frozenset[str]) -> Callable[[Sample], Found]:
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("[!.]*.[tT]ext[gG]rid")):
        by_name.setdefault(path.stem, []).append(path)

    def find(sample: Sample) -> Found:
        of_line = _at_place(by_name.get(sample.id.rpartition("/")[2], []), sample.id)
        name = sample.id if of_line or sample.id in by_name else sample.audio.stem
        paths = of_line or by_name.get(name, [])
        if len(paths) > 1 or (name != sample.id and name in shared):  # aligners write one folder per speaker
            beside = _at_place(paths, "/".join(sample.audio.with_suffix("").parts[-2:]))
            paths = [path for path in paths if path.parent.name == sample.speaker] or beside or paths
        if len(paths) > 1:
            raise _Unmatched(f"has {len(paths)} TextGrids: {paths[0]}, {paths[1]}")
        if not paths:
            raise _Unmatched(f"has no TextGrid {sample.id}.TextGrid or {sample.audio.stem}.TextGrid below {folder}")
        if (
            name != sample.id
            and name in shared
            and paths[0].parent.name not in (sample.speaker, sample.audio.parent.name)
        ):
            raise _Unmatched(
                f"shares the file name {sample.audio.name} with other audio, so {paths[0]} may not be its own"
            )
        return read_textgrid(paths[0], speaker=sample.speaker), name != sample.id

    return find


def _at_place(paths: Sequence[Path], place: str) -> list[Path]:
    """Return the paths that end with the folders and the name in ``place``, without their suffix."""
    parts = tuple(place.split("/"))
    return [path for path in paths if len(parts) > 1 and path.with_suffix("").parts[-len(parts) :] == parts]


def _ctm(path: Path, shared: frozenset[str]) -> Callable[[Sample], Found]:
    recordings = read_ctm(path)

    def find(sample: Sample) -> Found:
        name = sample.id if sample.id in recordings else sample.audio.stem
        if name not in recordings:
            raise _Unmatched(f"has no recording {sample.id} or {sample.audio.stem} in {path}")
        if name != sample.id and name in shared:
            raise _Unmatched(f"shares the file name {sample.audio.name} with other audio; name it by its id in {path}")
        return recordings[name], name != sample.id

    return find


def _shared_names(samples: Sequence[Sample]) -> frozenset[str]:
    """Return the names without suffix that audio files in different places have."""
    audio = {sample.audio for sample in samples}
    return frozenset(name for name, count in Counter(path.stem for path in audio).items() if count > 1)


def _within_segment(sample: Sample, words: Sequence[WordTime], of_file: bool) -> list[WordTime]:
    """Return the words within the segment of ``sample``, with times from its start."""
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
    """Return the words, spelled as in the transcript if the numbers of words agree.

    Raises `_Unmatched` if there are no words, or if they are not those of the transcript.
    """
    if not words:
        raise _Unmatched("has no words in the file")
    if sample.text is None:
        return list(words)
    written = spoken_words(sample.text)
    heard, stated = (
        [without_punctuation(word).lower() for word in side] for side in ([w.word for w in words], written)
    )
    agreement = SequenceMatcher(None, heard, stated, autojunk=False).ratio()
    if agreement < MIN_AGREEMENT:
        raise _Unmatched(f"has other words in the file: {' '.join(heard[:6])!r}, its text has {' '.join(stated[:6])!r}")
    if len(words) != len(written):
        return list(words)
    return [
        WordTime(spelling, word.start_s, word.end_s, word.aligned)
        for spelling, word in zip(written, words, strict=True)
    ]
