"""Keep tensors on disk by key, memory-mapped, checked by checksums, and safe against a crash.

A store is a folder of shards, each with a safetensors file and an index, and ``about.json``, which describes the
tensors. An index is written after its tensors, and only indexed tensors are read. Several processes may use one store:
each writes shards of its own and finds those of the others.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ossicle.errors import CacheError
from ossicle.files import atomic, write_json, write_text

ABOUT, LOCK = "about.json", ".lock"
SHARD_BYTES = 2**28
"""Bytes of tensors that wait in memory at most, whatever the number of their rows."""
REFRESH_S = 5.0
"""Seconds between two looks for the shards of other processes."""
AGAIN = "its values are computed again"


class _Place(NamedTuple):
    """The place of a tensor: its file, its rows in it, and its index among the tensors of the file."""

    path: Path
    start: int
    stop: int
    number: int


class CacheStore:
    """Keep tensors (rows, ...) by key; new ones are written once they have ``shard_rows`` rows or `SHARD_BYTES`."""

    def __init__(self, folder: Path, about: Mapping[str, Any], *, shard_rows: int) -> None:
        """Open or create the store.

        Raises `CacheError` if the folder was created with another description, if it is damaged, and if it cannot be
        written.
        """
        self.folder, self.shard_rows = folder, shard_rows
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / LOCK):
                _check_about(folder / ABOUT, dict(about))
        self._where: dict[str, _Place] = {}
        self._indices: set[str] = set()
        self._disk_bytes = 0
        self._open: dict[Path, tuple[Any, list[int] | None]] = {}
        self._new: dict[str, Tensor] = {}
        self._new_rows = self._new_bytes = 0
        self._looked_s = 0.0
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process needs to read; it opens the shards itself."""
        return {**self.__dict__, "_open": {}}

    def __contains__(self, key: str) -> bool:
        return key in self._where or key in self._new

    def __len__(self) -> int:
        return len(self._where) + len(self._new)

    def __getitem__(self, key: str) -> Tensor:
        """Return the tensor of ``key``. Raises `CacheError` if it differs from what was written."""
        if key in self._new:
            return self._new[key]
        place = self._where[key]
        with _damage(place.path):
            if place.path not in self._open:
                self._open[place.path] = _open_shard(place.path)
            rows, checksums = self._open[place.path]
            values: Tensor = rows[place.start : place.stop]
            if len(values) != place.stop - place.start or (
                checksums is not None and checksums[place.number] != _checksum(values)
            ):
                raise ValueError("checksum")
        return values

    @property
    def keys(self) -> list[str]:
        """Return the keys of all tensors, in the order in which they were added or found."""
        return [*self._where, *self._new]

    @property
    def size_bytes(self) -> int:
        """Return the size of all tensors in bytes, on disk and in memory, as far as this process knows."""
        return self._disk_bytes + self._new_bytes

    def refresh(self, *, at_once: bool = True) -> None:
        """Find shards that other processes have written. Unless ``at_once``, look once in `REFRESH_S` seconds only."""
        now = time.monotonic()
        if at_once or now - self._looked_s >= REFRESH_S:
            self._looked_s = now
            for index in sorted(self.folder.glob("[!.]*.json")):
                if index.name != ABOUT and index.name not in self._indices:
                    self._add_index(index)

    def add(self, items: Iterable[tuple[str, Tensor]]) -> None:
        """Add tensors (rows, ...) of one width and type, from any device; keys that exist are ignored.

        Raises `CacheError` as `flush` does.
        """
        for key, values in items:
            if key not in self:
                self._new[key] = values.detach().cpu()
                self._new_rows += len(values)
                self._new_bytes += values.numel() * values.element_size()
        if self._new_rows >= self.shard_rows or self._new_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the new tensors, and then the index that makes them valid.

        Raises `CacheError` if they cannot be written, for example because the disk is full.
        """
        if not self._new:
            return
        name = _name(self._new)
        checksums = [_checksum(values) for values in self._new.values()]
        with _disk_errors(self.folder):
            with atomic(self.folder / f"{name}.safetensors") as partial:
                about = {"name": name, "checksums": json.dumps(checksums)}
                save_file({"values": torch.cat(list(self._new.values()))}, partial, metadata=about)
            index = self.folder / f"{name}.json"
            write_text(index, json.dumps({key: len(values) for key, values in self._new.items()}))
        self._new, self._new_rows, self._new_bytes = {}, 0, 0
        self._add_index(index)

    def _add_index(self, index: Path) -> None:
        shard = index.with_suffix(".safetensors")
        with _damage(shard):
            rows_of = json.loads(index.read_text(encoding="utf-8"))
            self._disk_bytes += shard.stat().st_size
            if _name(rows_of) != index.stem or not all(
                isinstance(rows, int) and rows >= 0 for rows in rows_of.values()
            ):
                raise ValueError("the index is not the one that was written")
        start = 0
        for number, (key, rows) in enumerate(rows_of.items()):
            self._where.setdefault(key, _Place(shard, start, start + rows, number))
            start += rows
        self._indices.add(index.name)


def _name(keys: Iterable[str]) -> str:
    return hashlib.blake2b("".join(keys).encode(), digest_size=8).hexdigest()


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.contiguous().view(-1).view(torch.uint8).numpy().data) if values.numel() else 0


def _open_shard(path: Path) -> tuple[Any, list[int] | None]:
    """Return the rows of a shard, and the checksum of each tensor; shards of old versions have none."""
    file: Any = safe_open(path, framework="pt")  # its methods have no types
    about = file.metadata() or {}
    if about.get("name", path.stem) != path.stem:
        raise ValueError("the file belongs to another index")
    return file.get_slice("values"), json.loads(about["checksums"]) if "checksums" in about else None


@contextmanager
def _damage(shard: Path) -> Iterator[None]:
    """Turn every error that a damaged shard or index causes in the block into a `CacheError` that names the fix."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise CacheError(
            f"{shard}: the cached values or their index are damaged; delete {shard.stem}.* in this folder, and {AGAIN}"
        ) from error


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of writing in the block into a `CacheError` that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
        reason = "the disk is full" if full else str(error).splitlines()[0][:200]
        raise CacheError(
            f"{folder}: cannot be written: {reason}; free some space, or set another data.cache_dir. What was cached "
            "before stays valid"
        ) from error


def _check_about(path: Path, about: dict[str, Any]) -> None:
    """Write the description of a new store, or compare it with that of an existing one."""
    if not path.is_file() and not any(path.parent.glob("[!.]*.safetensors")):
        write_json(path, about)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        differing = sorted(key for key in found | about if found.get(key) != json.loads(json.dumps(about)).get(key))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(f"{path}: is damaged; delete the folder {path.parent}, and {AGAIN}") from error
    if differing:
        raise CacheError(
            f"{path.parent}: the folder was created for a different model or setting ({', '.join(differing)}); "
            "delete it, or set another data.cache_dir"
        )
