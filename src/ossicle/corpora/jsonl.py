"""Read manifests of other toolkits: NeMo (``audio_filepath, duration, text``) and SLAM-LLM (``key, source, target``).

If ``source_lang`` and ``target_lang`` of a NeMo line differ, its ``text`` is the translation. The ``target`` of a
SLAM-LLM line is the transcript, or the answer to its ``prompt`` if it has a ``task`` other than ASR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossicle.corpora import CORPORA
from ossicle.corpora.items import (
    BAD_ROW,
    Dropped,
    Item,
    Options,
    Reached,
    Recording,
    bad_row,
    label,
    layout_error,
    parse_record,
    read_lines,
)
from ossicle.corpora.paths import resolve_audio
from ossicle.corpora.records import check_columns, fields_of, lines_of, sample_of
from ossicle.errors import CorpusError


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests, which are named after the file and the task."""
    files = [source] if source.is_file() else sorted((*source.glob("[!.]*.jsonl"), *source.glob("[!.]*.json")))
    if not files:
        raise layout_error(CORPORA["jsonl"], source, "contains no .jsonl or .json file")
    check_columns(options)
    for done, path in enumerate(files):
        for number, line, fraction in read_lines(path):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    yield _item(parse_record(line, where, CORPORA["jsonl"].layout), path, where, options)
                except BAD_ROW as error:
                    yield bad_row(where, error)
            yield Reached((done + fraction) / len(files))


def _item(record: dict[str, Any], path: Path, where: str, options: Options) -> Item:
    record = _move_answer(record)
    fields = fields_of(record, options, where)
    if "audio" not in fields or not isinstance(record[fields["audio"]], str) or not record[fields["audio"]]:
        problem = "names no audio file (audio_filepath, source, ...); name its key with --column audio=KEY"
        raise CorpusError(f"{where}: {problem}; the keys are {', '.join(record)}")
    audio = resolve_audio(path.parent, record[fields["audio"]])
    # A stem alone would not be an id: folders of speakers contain files of the same name.
    place = audio.relative_to(path.parent) if audio.is_relative_to(path.parent) else audio
    name = "/".join(part for part in place.with_suffix("").parts if part not in (audio.anchor, ".."))
    try:
        sample = sample_of(record, fields, name, audio, options, where)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorpusError(f"{where}: {error}; write duration and offset in seconds, and names as texts") from error
    if sample.start_s and label(record.get(fields.get("id", "")), "id") is None:  # several segments of one file
        sample = replace(sample, id=f"{name}-{sample.start_s:g}")
    lines = lines_of(record, fields, sample, path.stem, options)
    return lines if isinstance(lines, Dropped) else Recording(lines)


def _move_answer(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with the translation or answer moved from ``text`` or ``target`` to ``answer``."""
    spoken, target_language = record.get("source_lang"), record.get("target_lang")
    if target_language and spoken and "answer" not in record:
        if target_language == spoken:
            return {key: value for key, value in record.items() if key != "target_lang"}
        return {("answer" if key == "text" else key): value for key, value in record.items()}
    if "key" in record and "target" in record:
        is_asr = str(record.get("task", "asr")).lower() == "asr"
        plain = {("text" if is_asr else "answer") if key == "target" else key: value for key, value in record.items()}
        return {key: value for key, value in plain.items() if not (is_asr and key == "prompt")}
    return record
