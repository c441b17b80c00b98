"""Convert records with other field names to manifest lines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora.items import Dropped, Options, asr_line, clean, label, st_line
from ossicle.errors import CorpusError

FIELD_NAMES = {
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
"""Common names of each field of Ossicle, in order of preference."""


def check_columns(options: Options) -> None:
    """Raise `CorpusError` if the user names an unknown field."""
    unknown = options.columns.keys() - FIELD_NAMES.keys()
    if unknown:
        raise CorpusError(f"--column {sorted(unknown)[0]}=...: is not a field; choose one of {', '.join(FIELD_NAMES)}")


def fields_of(names: Collection[str], options: Options, where: object) -> dict[str, str]:
    """Return the column of each field of Ossicle: the user's choice, or else the first common name that exists.

    Raises `CorpusError` if the user names an unknown field or a column that does not exist.
    """
    check_columns(options)
    for ours, theirs in options.columns.items():
        if theirs not in names:
            raise CorpusError(f"{where}: has no column {theirs!r} for {ours}; choose one of {', '.join(names)}")
    usual = {ours: next((name for name in theirs if name in names), None) for ours, theirs in FIELD_NAMES.items()}
    found = usual | dict(options.columns)
    return {ours: theirs for ours, theirs in found.items() if theirs is not None}


def sample_of(
    record: Mapping[str, Any], fields: Mapping[str, str], name: str, audio: Path, options: Options, where: str
) -> Sample:
    """Return the speech of the record at ``where``, with the id ``name`` if it has none.

    Raises `TypeError` or `ValueError` for a value of another type.
    """

    def value(field: str) -> Any:
        return record.get(fields[field]) if field in fields else None

    start_s, duration_s = (_seconds(value(field), field) for field in ("start_s", "duration_s"))
    is_segment = start_s is not None and duration_s is not None
    return Sample(
        id=label(value("id"), "id") or name,
        audio=audio,
        text=clean(_text(value("text"))) or None,
        language=options.language or label(value("language"), "language"),
        speaker=label(value("speaker"), "speaker"),
        start_s=start_s or 0.0,
        end_s=round((start_s or 0.0) + duration_s, 6) if is_segment and duration_s is not None else None,
        duration_s=duration_s,
        source=where,
    )


def lines_of(
    record: Mapping[str, Any], fields: Mapping[str, str], sample: Sample, split: str, options: Options
) -> tuple[tuple[str, Sample], ...] | Dropped:
    """Return the lines of a record for ``SPLIT`` (transcript), ``SPLIT.st-TARGET`` (translation) or ``SPLIT.TASK``.

    An answer is a translation if the record or the user names a target language. Otherwise it answers the instruction
    of the record, and its task is ``qa`` or the one that the user names. Raises `TypeError` for a value of another
    type.
    """
    lines: list[tuple[str, Sample]] = []
    if sample.text and options.wants("asr"):
        lines.append((split, asr_line(sample, options)))
    answers = tuple(filter(None, map(clean, _texts(record.get(fields.get("answer", ""))))))
    instruction = clean(_text(record.get(fields.get("instruction", "")))).replace("<audio>", "").strip()
    target = label(record.get(fields.get("target_language", "")), "target_language")
    target = target or (options.targets[0] if options.targets else None)
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
    return Dropped(sample.id, "no text for these tasks", f"{sample.source}: fields {has}")


def _texts(value: Any) -> list[str]:
    """Return the texts in a string, a list, or the answers of SQuAD on the Hugging Face hub, ``{"text": [...]}``.

    Raises `TypeError` if something else is among them.
    """
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, list):
        texts = [text.get("text") if isinstance(text, Mapping) else text for text in value]
    else:
        texts = [value]
    return [clean(label(text, "answer")) for text in texts]


def _text(value: Any) -> str:
    """Return the text, or an empty one for None and the number that tables have instead (NaN)."""
    if value is None or value != value:
        return ""
    return clean(value)


def _seconds(value: Any, field: str) -> float | None:
    """Return the value of ``field`` as seconds. Raises `ValueError` if it is not a number from 0 up."""
    if value is None or value == "":
        return None
    seconds = -1.0 if isinstance(value, bool) else float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f'"{field}" is {value!r}; write seconds, a number from 0 up')
    return seconds
