"""Read any parquet files with an audio column, such as data sets of the Hugging Face hub or of the paper's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ossicle.corpora import CORPORA
from ossicle.corpora.items import BAD_ROW, Dropped, Item, Options, Reached, Recording, bad_row, layout_error, select
from ossicle.corpora.records import fields_of, lines_of, sample_of
from ossicle.corpora.tables import TableRow, audio_of, columns_of, parquet_files, rows
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
        for number, (row, fraction) in enumerate(rows(files[split], list(dict.fromkeys(fields.values())))):
            try:
                yield _item(row, fields, f"{split}-{number:08d}", split, options)
            except BAD_ROW as error:
                yield bad_row(row.where, error, f"{split}-{number:08d}")
            yield Reached((done + fraction) / len(splits))


def _item(row: TableRow, fields: Mapping[str, str], name: str, split: str, options: Options) -> Item:
    sample = sample_of(row.cells, fields, name, row.folder, options, row.where)
    lines = lines_of(row.cells, fields, sample, split, options)
    if isinstance(lines, Dropped):
        return lines
    audio = audio_of(row.cells[fields["audio"]], sample.id, split, row.folder)
    if isinstance(audio, Dropped):
        return audio
    path, make = audio
    return Recording(tuple((manifest, replace(line, audio=path)) for manifest, line in lines), make)
