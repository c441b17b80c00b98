"""Read any parquet files with an audio column, such as data sets of the Hugging Face hub or of the paper's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossicle.corpora import CORPORA
from ossicle.corpora.items import Dropped, Item, Options, Reached, Recording, layout_error, select
from ossicle.corpora.records import fields_of, lines_of, sample_of
from ossicle.corpora.tables import audio_of, columns_of, parquet_files, rows
from ossicle.errors import CorpusError


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of manifests by split and task. Audio bytes are written unchanged to ``audio/SPLIT``."""
    files = parquet_files(source)
    if not files:
        raise layout_error(CORPORA["parquet"], source, "contains no .parquet file")
    splits = select(options.splits, list(files), "split", source)
    for done, split in enumerate(splits):
        fields = fields_of(columns_of(files[split][0]), options, files[split][0])
        if "audio" not in fields:
            has = ", ".join(columns_of(files[split][0]))
            raise CorpusError(
                f"{files[split][0]}: has no known audio column; name it: --column audio=COLUMN; the columns are {has}"
            )
        folder = files[split][0].parent
        for number, (row, fraction) in enumerate(rows(files[split], list(dict.fromkeys(fields.values())))):
            yield _item(row, fields, f"{split}-{number:08d}", split, options, folder)
            yield Reached((done + fraction) / len(splits))


def _item(
    row: dict[str, Any], fields: Mapping[str, str], name: str, split: str, options: Options, folder: Path
) -> Item:
    try:
        sample = sample_of(row, fields, name, folder, options)
    except (TypeError, ValueError) as error:
        return Dropped(name, "invalid number", str(error))
    lines = lines_of(row, fields, sample, split, options)
    if isinstance(lines, Dropped):
        return lines
    audio = audio_of(row[fields["audio"]], sample.id, split, folder)
    if isinstance(audio, Dropped):
        return audio
    path, make = audio
    return Recording(tuple((manifest, replace(line, audio=path)) for manifest, line in lines), make)
