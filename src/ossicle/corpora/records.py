"""Records whose fields have names of their own: which field is what, and the manifest lines that a record makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora.items import Dropped, Options, asr_line, clean, st_line
from ossicle.errors import CorpusError

USUAL = {
    "id": ("id", "key", "utt_id", "segment_id"),
    "audio": ("audio", "audio_filepath", "wav", "source", "path"),
    "text": ("text", "sentence", "transcript", "transcription", "txt"),
    "language": ("language", "source_lang", "lang", "locale"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "instruction": ("instruction", "question", "prompt"),
    "answer": ("answer", "answers", "translation"),
    "target_language": ("target_language", "target_lang"),
    "duration_s": ("duration_s", "duration"),
    "start_s": ("start_s", "offset"),
}
"""Our fields, and the names that others give them; the first that is there is taken."""


def fields_of(names: Collection[str], options: Options, where: object) -> dict[str, str]:
    """Our field -> the name it has here: as the user says, else the usual one. Raises `CorpusError`."""
    unknown = options.columns.keys() - USUAL.keys()
    if unknown:
        raise CorpusError(f"--column {sorted(unknown)[0]}=...: is not a field; the fields are {', '.join(USUAL)}")
    for ours, theirs in options.columns.items():
        if theirs not in names:
            raise CorpusError(f"{where}: has no column {theirs!r} for {ours}; it has {', '.join(names)}")
    usual = {ours: next((name for name in theirs if name in names), None) for ours, theirs in USUAL.items()}
    found = usual | dict(options.columns)
    return {ours: theirs for ours, theirs in found.items() if theirs is not None}


def sample_of(record: Mapping[str, Any], fields: Mapping[str, str], name: str, audio: Path, options: Options) -> Sample:
    """What the record says of the speech itself; ``name`` where it has no id. Raises `ValueError` for odd numbers."""

    def value(field: str) -> Any:
        return record.get(fields[field]) if field in fields else None

    start_s, duration_s = (None if (v := value(f)) is None else float(v) for f in ("start_s", "duration_s"))
    is_segment = start_s is not None and duration_s is not None
    return Sample(
        id=str(value("id") or name),
        audio=audio,
        text=clean(_text(value("text"))) or None,
        language=options.language or value("language"),
        speaker=None if value("speaker") is None else str(value("speaker")),
        start_s=start_s or 0.0,
        end_s=round((start_s or 0.0) + duration_s, 6) if is_segment and duration_s is not None else None,
        duration_s=duration_s,
    )


def lines_of(
    record: Mapping[str, Any], fields: Mapping[str, str], sample: Sample, split: str, options: Options
) -> tuple[tuple[str, Sample], ...] | Dropped:
    """The lines of a record: ``SPLIT`` (its transcript), ``SPLIT.st-TARGET`` (a translation) or ``SPLIT.TASK``.

    An answer is a translation where the record names a target language or the user does, and else the answer to the
    record's instruction, of the task ``qa`` or the one that the user names.
    """
    lines: list[tuple[str, Sample]] = []
    if sample.text and options.wants("asr"):
        lines.append((split, asr_line(sample, options)))
    answers = tuple(filter(None, map(clean, _texts(record.get(fields.get("answer", ""))))))
    instruction = clean(_text(record.get(fields.get("instruction", "")))).replace("<audio>", "").strip()
    target = record.get(fields.get("target_language", "")) or (options.targets[0] if options.targets else None)
    other = [task for task in options.tasks if task not in ("asr", "st")]
    if answers and target and options.wants("st"):
        lines.append((f"{split}.st-{target}", st_line(sample, target, answers[0], options)))
    elif answers and instruction and not target and (other or not options.tasks):
        task = other[0] if other else "qa"
        asked = replace(sample, id=f"{sample.id}-{task}", task=task, instruction=instruction, answers=answers)
        lines.append((f"{split}.{task}", asked))
    if lines:
        return tuple(lines)
    has = ", ".join(f"{ours}: {theirs}" for ours, theirs in sorted(fields.items()))
    return Dropped(sample.id, "no text for these tasks", f"fields {has}")


def _texts(value: Any) -> list[str]:
    """A text, a list of texts, or the answers of SQuAD as Hugging Face stores them, ``{"text": [...]}``."""
    if isinstance(value, Mapping):
        value = value.get("text")
    if value is None:
        return []
    return [str(text) for text in value] if isinstance(value, list) else [str(value)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
