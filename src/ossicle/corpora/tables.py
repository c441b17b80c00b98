"""Reading parquet files row by row, with the audio that is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ossicle.corpora.audio_makers import Embedded
from ossicle.corpora.items import Dropped
from ossicle.errors import AudioError, CorpusError

ROWS = 32
"""Read together: a row may hold a megabyte of audio."""
PART = re.compile(r"(.+?)(?:[-_]\d+(?:-of-\d+)?)?")


def parquet_files(source: Path) -> dict[str, list[Path]]:
    """Files by split: ``train-00000-of-00010.parquet`` is of ``train``, ``train/0000.parquet`` too."""
    if source.is_file():
        return {_split(source): [source]} if source.suffix == ".parquet" else {}
    files: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.parquet")):
        files.setdefault(_split(path), []).append(path)
    return files


def columns_of(path: Path) -> list[str]:
    """Names of the columns; raises `CorpusError` for a file that is not parquet."""
    return list(_open(path).schema_arrow.names)


def rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], float]]:
    """The rows with these columns, and the share of all rows read; raises `CorpusError`."""
    opened = [_open(path) for path in files]
    total = max(sum(file.metadata.num_rows for file in opened), 1)
    done = 0
    for path, file in zip(files, opened, strict=True):
        names = file.schema_arrow.names
        missing = [name for name in columns if name not in names]
        if missing:
            raise CorpusError(f"{path}: has no column {missing[0]!r}; it has {', '.join(names)}")
        for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
            for row in batch.to_pylist():
                done += 1
                yield row, done / total


def audio_of(cell: Any, name: str, split: str, folder: Path) -> tuple[Path, Embedded | None] | Dropped:
    """Where the audio of a cell ``{bytes, path}`` is, or will be written from the bytes, below OUT."""
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
    """An id as a file name."""
    return re.sub(r"[^\w.-]", "_", name)


def _split(path: Path) -> str:
    if path.stem.isdecimal() and path.parent.name:
        return path.parent.name
    match = PART.fullmatch(path.stem)
    return match[1] if match else path.stem


def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise CorpusError('parquet files need pyarrow: pip install "ossicle[parquet]"') from error
    try:
        return ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path}: is not a parquet file ({error})") from error
