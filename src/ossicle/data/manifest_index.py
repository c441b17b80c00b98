"""Index a large manifest once: where its lines begin, and the few values that are needed of all lines together.

The index is a folder of NumPy arrays in the user's cache folder. Arrays are memory-mapped: opening a manifest of a
million lines reads almost nothing, and the processes of a machine share one copy. A line becomes a `Sample` when it is
used. A manifest that has changed is indexed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from ossicle.addresses import is_remote
from ossicle.batch import Sample
from ossicle.data.manifest import check_path, numbered_lines, parse_line, repeated_id
from ossicle.errors import ManifestError
from ossicle.files import atomic_folder, write_json
from ossicle.progress import Progress

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the folder's content; an index of another version is made again."""
ABOUT = "about.json"
MOST_OUTLINES = 65_536
"""Largest number of different outlines that are kept. There are more if every instruction is another question."""
BLOCK, BLOCKS = 65_536, 32
"""Size in bytes and number of the parts of a manifest that are hashed to notice a change."""
TYPES = {"begin": "q", "number": "i", "stated_s": "d", "kind": "i", "audio_end": "q", "audio": "B"}
"""Arrays and their types: offset and number of each line; its seconds, or NaN if they are not stated; index into
``outlines``; end of its audio path in ``audio``, the joined paths in UTF-8."""

Columns = dict[str, npt.NDArray[Any]]


Outline = tuple[str | None, str | None, str | None, str | None, str | None, bool]
"""The values that many lines share: task, language, target language, instruction; "text", "" or None for the
transcript; and whether there are answers."""


@dataclass
class IndexedManifest:
    """A manifest with its index. A line is read from the file when it is used."""

    path: Path
    columns: Columns
    outlines: list[Sample] | None
    """Samples that have only what many lines share (`Outline`). None if there are too many."""
    changed: tuple[int, int]
    """Size in bytes and time of change in ns of the file that was indexed."""
    _file: int | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open ``path`` with the index in the cache folder, which is made first if it is missing or out of date.

        Raises `ManifestError` at the first invalid line, and for an id that two lines have.
        """
        check_path(path)
        folder, key = _folder(path), _key(path)
        if (found := cls._load(path, folder, key)) is not None:
            return found
        with _locked(folder):
            if (found := cls._load(path, folder, key)) is not None:
                return found  # another process has made it
            columns, outlines, changed = _build(path)
            found = cls(path, columns, _samples_of(outlines), changed)
            _refuse_repeated_ids(found, columns.pop("id_hash"))
            if _save(folder, found.columns, {"key": key, "changed": changed, "outlines": outlines}):
                return cls._load(path, folder, key) or found  # mapped, so that the arrays are shared
            return found

    @classmethod
    def _load(cls, path: Path, folder: Path, key: str) -> Self | None:
        """Return the manifest with the index in ``folder``, or None if there is none, or one of another content."""
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if about["key"] != key:
                return None
            columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in TYPES}
            return cls(path, columns, _samples_of(about["outlines"]), tuple(about["changed"]))
        except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError):
            return None  # missing or damaged: it is made again

    def __len__(self) -> int:
        return len(self.columns["begin"])

    def __getitem__(self, row: int) -> Sample:
        """Return the sample of ``row``, counted from 0 without blank lines."""
        begins = self.columns["begin"]
        begin = int(begins[row])
        stop = int(begins[row + 1]) if row + 1 < len(begins) else self.changed[0]
        raw = os.pread(self._opened(), stop - begin, begin).partition(b"\n")[0]  # blank lines may follow
        return parse_line(raw.decode(), self.path.parent, f"{self.path}:{self.columns['number'][row]}")

    def stated(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[str, float]]:
        """Yield the path of the audio, and its seconds by the manifest or NaN, for each of ``rows``."""
        folder, paths = self.path.parent, self.columns["audio"].data
        ends = self.columns["audio_end"]
        starts = np.where(rows > 0, ends[rows - 1], 0).tolist()
        places = zip(starts, ends[rows].tolist(), self.columns["stated_s"][rows].tolist(), strict=True)
        for start, end, stated_s in places:
            audio = bytes(paths[start:end]).decode()
            yield audio if is_remote(audio) else os.path.join(folder, audio), stated_s  # noqa: PTH118 - Path is slow

    def __reduce__(self) -> tuple[Any, ...]:  # a worker process that is not forked maps the arrays itself
        return IndexedManifest.open, (self.path,)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _opened(self) -> int:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
            if _state(os.fstat(self._file)) != self.changed:
                raise ManifestError(f"{self.path}: has changed since it was opened; start again")
        return self._file


def _build(path: Path) -> tuple[Columns, list[Outline] | None, tuple[int, int]]:
    """Return the arrays of `TYPES` with a hash of each id, the outlines, and the state of the file."""
    arrays: dict[str, array[Any]] = {name: array(kind) for name, kind in {**TYPES, "id_hash": "q"}.items()}
    outlines: dict[Outline, int] = {}
    changed = _state(path.stat())
    with Progress(f"Indexing {path.name}", changed[0] / 1e6, unit="MB") as progress:
        for number, begin, line in numbered_lines(path):
            sample = parse_line(line, Path(), f"{path}:{number}")
            arrays["audio"].frombytes(str(sample.audio).encode())
            kind = outlines.setdefault(_outline(sample), len(outlines)) if len(outlines) <= MOST_OUTLINES else 0
            row = (begin, number, _stated_s(sample), kind, len(arrays["audio"]), hash(sample.id))
            for name, value in zip(("begin", "number", "stated_s", "kind", "audio_end", "id_hash"), row, strict=True):
                arrays[name].append(value)
            if number % 10_000 == 0:
                progress.update(begin / 1e6)
    columns = {name: np.frombuffer(values, dtype=values.typecode) for name, values in arrays.items()}
    return columns, list(outlines) if len(outlines) <= MOST_OUTLINES else None, changed


def _stated_s(sample: Sample) -> float:
    if sample.end_s is not None:
        return sample.end_s - sample.start_s
    return math.nan if sample.duration_s is None else sample.duration_s


def _outline(sample: Sample) -> Outline:
    text = None if sample.text is None else "text" if sample.text.strip() else ""
    return sample.task, sample.language, sample.target_language, sample.instruction, text, bool(sample.answers)


def _samples_of(outlines: list[Outline] | None) -> list[Sample] | None:
    if outlines is None:
        return None
    names: Any = ("task", "language", "target_language", "instruction", "text")
    return [
        Sample(id="", audio=Path(), answers=("answer",) * answered, **dict(zip(names, values, strict=True)))
        for *values, answered in outlines
    ]


def _refuse_repeated_ids(manifest: IndexedManifest, hashes: npt.NDArray[np.int64]) -> None:
    """Raise `ManifestError` for the first id that an earlier line has; ``hashes`` are those of the ids."""
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order[1:]] == hashes[order[:-1]]
    line_of_id: dict[str, str] = {}
    for row in sorted({*order[1:][equal].tolist(), *order[:-1][equal].tolist()}):
        sample = manifest[row]  # different ids may have one hash
        number = sample.source.rpartition(":")[2]
        if (earlier := line_of_id.setdefault(sample.id, number)) != number:
            raise repeated_id(sample, earlier)


def _save(folder: Path, columns: Columns, about: dict[str, Any]) -> bool:
    try:
        with atomic_folder(folder) as partial:
            for name, values in columns.items():
                np.save(partial / f"{name}.npy", values)
            write_json(partial / ABOUT, about)
    except OSError as error:
        logger.warning("%s: the index of a manifest cannot be kept (%s); set XDG_CACHE_HOME", folder, error.strerror)
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make the index; the others wait. Where no lock can be made, each makes its own."""
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        pass
    try:
        yield
    finally:
        lock.release()


def _folder(path: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.path.abspath(path).encode(), digest_size=12).hexdigest()  # noqa: PTH100 - not through links
    return cache / "ossicle" / "manifests" / name


def _key(path: Path) -> str:
    """Return a fingerprint of a manifest: its size, its time of change, and parts of its content."""
    changed = _state(path.stat())
    digest = hashlib.blake2b(repr((VERSION, *changed)).encode(), digest_size=16)
    with path.open("rb") as file:
        for place in range(BLOCKS + 1):
            file.seek(max(changed[0] - BLOCK, 0) * place // BLOCKS)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
