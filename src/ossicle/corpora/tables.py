"""Read parquet files row by row, with the audio in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ossicle.corpora.audio_makers import Embedded
from ossicle.corpora.items import Dropped
from ossicle.errors import AudioError, CorpusError, MissingPackageError

BATCH_ROWS = 32
"""Number of rows that are read together. A row may contain a megabyte of audio."""
SPLIT_NAME = re.compile(r"(.+?)(?:[-_]\d+(?:-of-\d+)?)?")


def parquet_files(source: Path) -> dict[str, list[Path]]:
    """Return the files by split. ``train-00000-of-00010.parquet`` and ``train/0000.parquet`` belong to ``train``."""
    if source.is_file():
        return {_split(source): [source]} if source.suffix == ".parquet" else {}
    files: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.parquet")):
        files.setdefault(_split(path), []).append(path)
    return files


def columns_of(path: Path) -> list[str]:
    """Return the names of the columns. Raises `CorpusError` if the file is not parquet."""
    return list(_open(path).schema_arrow.names)


def rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield the rows of all files with these columns, each with the share of the rows that is read.

    Raises `CorpusError` if a file is not parquet or lacks a column.
    """
    opened = [_open(path) for path in files]
    total = max(sum(file.metadata.num_rows for file in opened), 1)
    done = 0
    for path, file in zip(files, opened, strict=True):
        names = file.schema_arrow.names
        missing = [name for name in columns if name not in names]
        if missing:
            raise CorpusError(f"{path}: has no column {missing[0]!r}; the columns are {', '.join(names)}")
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
            for row in batch.to_pylist():
                done += 1
                yield row, done / total


def audio_of(cell: Any, name: str, split: str, folder: Path) -> tuple[Path, Embedded | None] | Dropped:
    """Return the path of the audio in a cell ``{bytes, path}``, and what writes it if the cell holds bytes.

    With bytes, the path is relative to the output folder. Without, it is relative to ``folder``.
    """
    if isinstance(cell, str):
        cell = {"path": cell}
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        return Dropped(name, "no audio in the row")
    if not cell.get("bytes"):
        return folder / cell["path"], None
    audio = Embedded(cell["bytes"])
    try:
        return Path("audio") / split / f"{safe_name(name)}{audio.suffix()}", audio
    except AudioError as error:
        return Dropped(name, "audio cannot be used", str(error))


def safe_name(name: str) -> str:
    """Return an id as a file name, with underscores for special characters."""
    return re.sub(r"[^\w.-]", "_", name)


def _split(path: Path) -> str:
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
        return ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path}: is not a parquet file ({error}); download it again") from error
