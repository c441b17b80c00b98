"""Read parquet files row by row, with the audio in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.addresses import is_remote, list_files, open_binary
from ossicle.corpora.audio_makers import Embedded
from ossicle.corpora.items import Dropped, printable
from ossicle.corpora.naming import safe_name
from ossicle.corpora.paths import resolve_audio
from ossicle.errors import AudioError, CorpusError, MissingPackageError

BATCH_ROWS = 32
"""Number of rows that are read together. A row may contain a megabyte of audio."""
SPLIT_NAME = re.compile(r"(.+?)(?:[-_]\d+(?:-of-\d+)?)?")


def parquet_files(source: Path) -> dict[str, list[Path]]:
    """Return the files by split. ``train-00000-of-00010.parquet`` and ``train/0000.parquet`` belong to ``train``."""
    if source.is_file():
        return {split_of(source): [source]} if source.suffix == ".parquet" else {}
    files: dict[str, list[Path]] = {}
    for path in list_files(source, ".parquet") if is_remote(source) else sorted(source.rglob("[!.]*.parquet")):
        files.setdefault(split_of(path), []).append(path)
    return files


def columns_of(path: Path) -> list[str]:
    """Return the names of the columns. Raises `CorpusError` if the file is not parquet."""
    return list(_open(path).schema_arrow.names)


@dataclass(frozen=True)
class TableRow:
    """A row of a parquet file."""

    cells: dict[str, Any]
    """Cells by the name of their column."""
    folder: Path
    """Folder of the file, where relative paths of audio start."""
    where: str
    """``file:number`` of the row, from 1."""


def rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[TableRow, float]]:
    """Yield the rows of all files with these columns, each with the share of the rows that is read.

    Raises `CorpusError` if a file is not parquet, is damaged or lacks a column.
    """
    opened = [_open(path) for path in files]
    total = max(sum(file.metadata.num_rows for file in opened), 1)
    done = 0
    for path, file in zip(files, opened, strict=True):
        names = file.schema_arrow.names
        missing = [name for name in columns if name not in names]
        if missing:
            raise CorpusError(f"{path}: has no column {missing[0]!r}; the columns are {', '.join(names)}")
        number = 0
        for row in _rows_of(path, file, columns):
            number, done = number + 1, done + 1
            yield TableRow(row, path.parent, f"{path}:{number}"), done / total


def _rows_of(path: Path, file: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException

    batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
    while True:
        try:
            batch = next(batches, None)
            found = [] if batch is None else batch.to_pylist()
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: is damaged ({printable(str(error))}); download it again") from error
        if batch is None:
            return
        yield from found


def audio_of(cell: Any, name: str, split: str, folder: Path) -> tuple[Path, Embedded | None] | Dropped:
    """Return the path of the audio in a cell ``{bytes, path}``, and what writes it if the cell holds bytes.

    With bytes, the path is relative to the output folder. Without, it is relative to ``folder``.
    """
    if isinstance(cell, str | bytes):
        cell = {"path" if isinstance(cell, str) else "bytes": cell}
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, None)
    if not content and path and isinstance(path, str):
        return resolve_audio(folder, path), None
    if not content or not isinstance(content, bytes):
        return Dropped(name, "no audio in the row")
    audio = Embedded(content)
    try:
        return Path("audio") / split / f"{safe_name(name)}{audio.suffix()}", audio
    except AudioError as error:
        return Dropped(name, "audio cannot be used", str(error))


def split_of(path: Path) -> str:
    """Return the split of a file or a shard: ``train`` for ``train-00000-of-00010.parquet`` and ``train/0000.tar``."""
    if path.stem.isdecimal() and path.parent.name:
        return path.parent.name
    match = SPLIT_NAME.fullmatch(path.stem)
    return match[1] if match else path.stem


def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackageError("parquet files need pyarrow; install it: pip install pyarrow") from error
    try:
        return ParquetFile(open_binary(path) if is_remote(path) else path)
    except (ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path}: is not a parquet file ({printable(str(error))}); download it again") from error
