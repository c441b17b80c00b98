"""Read speaker descriptions of Multilingual LibriSpeech (Lyth and King, 2024) as one text, for the task ``meta``.

The data set on the hub has no audio. Either the tables have an audio column, which the paper's code adds, or the
option ``audio`` is the folder with the parquet files of mls_eng. Both data sets identify an utterance by its LibriVox
recording and its position there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora import DESCRIPTION_ATTRIBUTES as ATTRIBUTES
from ossicle.corpora.disk import DiskDict
from ossicle.corpora.items import (
    BAD_ROW,
    Dropped,
    Item,
    Options,
    Reached,
    Recording,
    bad_row,
    clean,
    label,
    layout_error,
    select,
    within_part,
)
from ossicle.corpora.tables import TableRow, audio_of, columns_of, parquet_files, rows
from ossicle.errors import CorpusError

INSTRUCTION = (
    "Describe the recording: speaking rate, gender of the speaker, noise, reverberation, monotony, "
    "signal-to-distortion noise and perceived quality."
)
JOIN_KEY = ("original_path", "begin_time")
"""Columns that identify an utterance in both data sets."""
TEXT_COLUMNS = ("transcript", "original_text", "text")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``SPLIT.meta``."""
    files = parquet_files(source)
    if not files:
        raise layout_error(CORPORA["mls-descriptions"], source, "contains no .parquet file")
    described = {split: _described(paths[0]) for split, paths in files.items()}
    splits = select(options.splits, list(files), "split", source)
    for done, split in enumerate(splits):
        for item in _read_split(files[split], split, described[split], options):
            yield within_part(item, done, len(splits))


def _described(path: Path) -> list[str]:
    """Return the columns of a table. Raises `CorpusError` if an attribute is missing."""
    names = columns_of(path)
    missing = [name for name in ATTRIBUTES if name not in names]
    if missing:
        raise layout_error(CORPORA["mls-descriptions"], path, f"has no column {missing[0]!r}")
    return names


def _read_split(files: list[Path], split: str, names: list[str], options: Options) -> Iterator[Item]:
    audio = options.columns.get("audio", "audio")
    if audio in names and options.audio is None:
        wanted = [audio, *ATTRIBUTES, *(name for name in (*TEXT_COLUMNS, "speaker_id", "id") if name in names)]
        for number, (row, fraction) in enumerate(rows(files, wanted)):
            yield _item(row.cells, row, audio, split, number)
            yield Reached(fraction)
        return
    if options.audio is None:
        raise layout_error(
            CORPORA["mls-descriptions"], files[0], "has no audio column; name the folder of mls_eng with --audio"
        )
    yield from _joined(files, split, Path(options.audio))


def _joined(files: list[Path], split: str, folder: Path) -> Iterator[Item]:
    """Store the descriptions on disk, then read the audio once and look up the description of each utterance."""
    speech = parquet_files(folder)
    if split not in speech:
        raise CorpusError(
            f"{folder}: has no parquet files of {split!r}; it has those of {', '.join(speech) or 'no split'}"
        )
    described = DiskDict()
    for row, fraction in rows(files, [*JOIN_KEY, *ATTRIBUTES]):
        try:
            values = "\n".join(clean(label(row.cells[name], name)) for name in ATTRIBUTES)
            if not described.add(_place(row.cells), values):
                yield bad_row(row.where, "describes a position again; the first description is kept")
        except BAD_ROW as error:
            yield bad_row(row.where, error)
        yield Reached(fraction / 10)
    names = columns_of(speech[split][0])
    wanted = ["audio", *JOIN_KEY, *(name for name in (*TEXT_COLUMNS, "speaker_id", "id") if name in names)]
    for number, (row, fraction) in enumerate(rows(speech[split], wanted)):
        try:
            place = _place(row.cells)
        except BAD_ROW as error:
            yield bad_row(row.where, error)
            continue
        found = described.get(place)
        if found is None:
            yield Dropped(f"{split}-{number:08d}", "no description", place)
        else:
            about = dict(zip(ATTRIBUTES, found.split("\n"), strict=True))
            yield _item(about, row, "audio", split, number)
        yield Reached(0.1 + 0.9 * fraction)


def _place(row: Mapping[str, Any]) -> str:
    """Return what identifies the utterance in both data sets. Raises `ValueError` if the row does not name it."""
    path, begin_s = (row[name] for name in JOIN_KEY)
    if not path or not float(begin_s) >= 0:
        raise ValueError(f"{JOIN_KEY[0]} is {path!r} and {JOIN_KEY[1]} is {begin_s!r}; expected a path and seconds")
    return f"{path} {float(begin_s):.3f}"


def _item(about: Mapping[str, Any], row: TableRow, audio: str, split: str, number: int) -> Item:
    """Return the recording of an utterance with the attributes in ``about`` and the column ``audio`` of ``row``."""
    cells = row.cells
    try:
        values = [clean(label(about[attribute], attribute)) for attribute in ATTRIBUTES]
        name = label(cells.get("id"), "id") or f"{split}-{number:08d}"
        speaker = label(cells.get("speaker_id"), "speaker_id")
    except BAD_ROW as error:
        return bad_row(row.where, error)
    if not all(values):
        return Dropped(name, "attribute missing", ATTRIBUTES[values.index("")])
    found = audio_of(cells[audio], name, split, row.folder)
    if isinstance(found, Dropped):
        return found
    path, make = found
    text = next((cells[column] for column in TEXT_COLUMNS if isinstance(cells.get(column), str)), None)
    sample = Sample(
        id=name,
        audio=path,
        text=clean(text) or None,
        language="en",
        speaker=speaker,
        task="meta",
        instruction=INSTRUCTION,
        answers=(", ".join(values),),
        source=row.where,
    )
    return Recording(((f"{split}.meta", sample),), make)
