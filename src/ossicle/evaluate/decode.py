"""Decode a dataset into a file of hypotheses. An interrupted call resumes where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from ossicle.batch import Batch, Sample, Skipped, Utterance
from ossicle.data.dataset import known_duration_s
from ossicle.errors import HypothesesError
from ossicle.evaluate.hypotheses import GroupKey, Key, parse_line
from ossicle.evaluate.inputs import input_hashes
from ossicle.evaluate.references import hypothesis_of
from ossicle.files import write_json, write_text
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

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples to decode, each with its duration."""
        ...

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
    stale: int = 0
    """Utterances of an earlier call whose audio or instruction was another one; they are decoded again."""
    decoded: int = 0
    """Utterances that this call decoded."""
    audio_s: float = 0.0
    wall_s: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    """Utterances that could not be read. The dataset itself reports those it rejected at construction."""


def decode(  # noqa: PLR0913 - three parts and three settings
    model: Decoder,
    dataset: Utterances,
    collate: Collate,
    out_path: Path,
    *,
    fingerprint: str,
    batch_size: int = 16,
    replace: bool = False,
    whole_batches: bool = False,
    **decoding: Any,
) -> DecodeReport:
    """Append one line per utterance to ``out_path``, longest utterance first.

    Each batch is written as soon as it is decoded. Utterances that the file holds already are skipped if their audio
    and instruction are the same (`ossicle.evaluate.inputs`); others are decoded again. References, transcripts and
    languages of all lines are those of ``dataset``. ``<name>.meta.json`` records the fingerprint and the decoding
    settings, so that one file never mixes two models.

    Args:
        model: decoder of the batches.
        dataset: utterances to decode.
        collate: function that makes a batch of utterances.
        out_path: file of hypotheses.
        fingerprint: identity of the checkpoint.
        batch_size: utterances per batch.
        replace: replace a file of another checkpoint or other settings, and lines of other utterances, instead of
            raising an error.
        whole_batches: decode a batch again as a whole if the file lacks a part of it, so that its answers do not
            depend on where an earlier call was interrupted.
        **decoding: arguments of ``model.generate_batch``, e.g. ``from_text``; ``max_new_tokens`` is 200 by default.

    Raises:
        HypothesesError: the file is invalid, or belongs to another checkpoint, setting or dataset, or another process
            decodes into it.
    """
    decoding = {"max_new_tokens": MAX_NEW_TOKENS, **decoding}
    with _exclusive(out_path):
        meta = {"fingerprint": fingerprint, "decoding": decoding}
        if replace:
            _remove_unless(out_path, meta)
        _check_meta(out_path, meta)
        durations_s = [known_duration_s(sample) for sample in dataset.samples]
        hashes = input_hashes(dataset.samples, from_text=bool(decoding.get("from_text")))
        kept = _reconcile(out_path, dataset.samples, hashes, replace=replace)
        batches = list(_plan(durations_s, kept.indices, batch_size, whole_batches))
        report = DecodeReport(already_decoded=len(kept.indices), stale=kept.stale)
        started, total_s = time.perf_counter(), sum(durations_s[i] for indices in batches for i in indices)
        with Progress("decoding", total_s, unit="s of audio") as progress, out_path.open("a", encoding="utf-8") as out:
            for indices in batches:
                items = [dataset[i] for i in indices]
                report.skipped += [item for item in items if isinstance(item, Skipped)]
                batch = collate(items)
                if batch.samples:
                    heard = [i for i, item in zip(indices, items, strict=True) if isinstance(item, Utterance)]
                    answers = model.generate_batch(batch, **decoding)
                    for i, sample, answer in zip(heard, batch.samples, answers, strict=True):
                        if i not in kept.indices:
                            out.write(hypothesis_of(sample, answer, hashes[i]).to_json() + "\n")
                    out.flush()
                report.decoded += len(batch)
                report.audio_s += batch.audio_s
                report.wall_s = time.perf_counter() - started
                progress.advance(sum(durations_s[i] for i in indices))
            progress.say(_describe(report, out_path))
        return report


def order_of(durations_s: Sequence[float]) -> list[int]:
    """Return the indices in the order of a file of hypotheses: longest first, so that too large a batch fails early."""
    return sorted(range(len(durations_s)), key=lambda index: -durations_s[index])


def _plan(durations_s: Sequence[float], kept: set[int], batch_size: int, whole: bool) -> Iterator[list[int]]:
    order = [index for index in order_of(durations_s) if whole or index not in kept]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if not kept.issuperset(batch):
            yield batch


def group_of(sample: Sample) -> GroupKey:
    """Return the group that the answer to ``sample`` is scored with."""
    return hypothesis_of(sample).group


def meta_path(out_path: Path) -> Path:
    """Return the meta file of a file of hypotheses: ``NAME.meta.json`` for ``NAME.jsonl``."""
    return out_path.with_suffix(".meta.json")


@contextmanager
def _exclusive(out_path: Path) -> Iterator[None]:
    """Hold a lock on ``out_path`` inside the block. A process that dies does not keep it."""
    out_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out_path.with_name(f".{out_path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise HypothesesError(
            f"{out_path}: another process decodes into this file; wait for it, or decode into another file"
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Kept:
    """Lines of an earlier call that stay in the file."""

    indices: set[int] = field(default_factory=set)
    """Indices of their samples."""
    stale: int = 0
    """Lines that were removed, because they answer another input."""


def _reconcile(out_path: Path, samples: Sequence[Sample], hashes: Sequence[str], *, replace: bool) -> _Kept:
    """Keep the answers in the file that belong to ``samples``, with the references of ``samples``, and drop stale ones.

    The file is written again if this changes it. A last line that an interruption cut short is dropped. Lines of other
    utterances raise `HypothesesError`, or are dropped if ``replace``.
    """
    index_of: dict[Key, int] = {}
    for index, sample in enumerate(samples):
        twin = index_of.setdefault(hypothesis_of(sample).key, index)
        if twin != index:
            raise HypothesesError(
                f"{sample.source}: {sample.id!r} with this task and instruction is at {samples[twin].source} already; "
                "give one of the two another id"
            )
    kept = _Kept()
    if not out_path.exists():
        return kept
    content = out_path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    found = [parse_line(line, f"{out_path}:{n}") for n, line in enumerate(whole.splitlines(), 1) if line.strip()]
    foreign = {line.key for line in found} - index_of.keys()
    if replace:
        found = [line for line in found if line.key not in foreign]
    elif foreign:
        raise HypothesesError(
            f"{out_path}: holds {len(foreign)} utterances that this dataset does not; decode into another file "
            f"(--out), or delete {out_path.name}"
        )
    lines = []
    for line in found:
        index = index_of[line.key]
        if line.input_hash == hashes[index] and index not in kept.indices:
            kept.indices.add(index)
            lines.append(hypothesis_of(samples[index], line.hypothesis, hashes[index]).to_json() + "\n")
    kept.stale = len(found) - len(lines)
    if (text := "".join(lines)).encode() != content:
        write_text(out_path, text)
    return kept


def _remove_unless(out_path: Path, meta: dict[str, Any]) -> None:
    """Remove a file of hypotheses unless its meta file equals ``meta``."""
    try:
        same = json.loads(meta_path(out_path).read_text(encoding="utf-8")) == meta
    except (OSError, ValueError):
        same = False
    if not same and out_path.is_file():
        out_path.unlink()


def _check_meta(out_path: Path, meta: dict[str, Any]) -> None:
    """Write the meta file of a new or empty file of hypotheses, or check that the existing one equals ``meta``.

    A call that failed before its first answer leaves an empty file, which must not bind later calls to its settings.
    """
    path = meta_path(out_path)
    if out_path.is_dir():
        raise HypothesesError(f"{out_path}: is a folder; name a file for the hypotheses (--out)")
    fix = f"decode into another file, or delete {out_path.name} and {path.name}"
    if not out_path.exists() or out_path.stat().st_size == 0:
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


def _describe(report: DecodeReport, out_path: Path) -> str:
    earlier = f" ({report.already_decoded} were decoded before)" if report.already_decoded else ""
    lines = [
        f"{out_path}: decoded {report.decoded} utterances{earlier}, "
        f"{report.audio_s:.0f} s of audio in {report.wall_s:.0f} s"
    ]
    if report.stale:
        lines.append(f"{report.stale} earlier answers were to other audio or another instruction and were replaced")
    if report.skipped:
        lines += [f"{len(report.skipped)} utterances have no hypothesis:", *map(str, report.skipped)]
    return "\n  ".join(lines)
