"""Keep tensors on disk by key, memory-mapped and safe against a crash.

A store is a folder of shards, each with a safetensors file and an index, and ``about.json``, which describes the
tensors. An index is written after its tensors, and only indexed tensors are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ossicle.errors import CacheError
from ossicle.files import atomic, write_json, write_text

ABOUT = "about.json"


class CacheStore:
    """Keep tensors (rows, ...) by key; new tensors are written once they have ``shard_rows`` rows in total."""

    def __init__(self, folder: Path, about: Mapping[str, Any], *, shard_rows: int) -> None:
        """Open or create the store. Raises `CacheError` if the folder was created with another description."""
        self.folder, self.shard_rows = folder, shard_rows
        folder.mkdir(parents=True, exist_ok=True)
        _check_about(folder / ABOUT, dict(about))
        self._where: dict[str, tuple[Path, int, int]] = {}
        self._open: dict[Path, Any] = {}
        self._new: dict[str, Tensor] = {}
        self._new_rows = 0
        for index in sorted(self.folder.glob("[!.]*.json")):
            if index.name != ABOUT:
                self._add_index(index)

    def __contains__(self, key: str) -> bool:
        return key in self._where or key in self._new

    def __len__(self) -> int:
        return len(self._where) + len(self._new)

    def __getitem__(self, key: str) -> Tensor:
        if key in self._new:
            return self._new[key]
        path, start, stop = self._where[key]
        if path not in self._open:
            file: Any = safe_open(path, framework="pt")  # its methods have no types
            self._open[path] = file.get_slice("values")
        values: Tensor = self._open[path][start:stop]
        return values

    @property
    def keys(self) -> list[str]:
        """Return the keys of all tensors, in the order in which they were added."""
        return [*self._where, *self._new]

    @property
    def size_bytes(self) -> int:
        """Return the size of all tensors in bytes, on disk and in memory."""
        waiting = sum(values.numel() * values.element_size() for values in self._new.values())
        return waiting + sum(path.stat().st_size for path in self.folder.glob("[!.]*.safetensors"))

    def add(self, items: Iterable[tuple[str, Tensor]]) -> None:
        """Add tensors (rows, ...) of one width and type, from any device; keys that exist are ignored."""
        for key, values in items:
            if key not in self:
                self._new[key] = values.detach().cpu()
                self._new_rows += len(values)
        if self._new_rows >= self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Write the new tensors, and then the index that makes them valid."""
        if not self._new:
            return
        name = hashlib.blake2b("".join(self._new).encode(), digest_size=8).hexdigest()
        with atomic(self.folder / f"{name}.safetensors") as partial:
            save_file({"values": torch.cat(list(self._new.values()))}, partial)
        index = self.folder / f"{name}.json"
        write_text(index, json.dumps({key: len(values) for key, values in self._new.items()}))
        self._new, self._new_rows = {}, 0
        self._add_index(index)

    def _add_index(self, index: Path) -> None:
        start = 0
        for key, rows in json.loads(index.read_text()).items():
            self._where[key] = (index.with_suffix(".safetensors"), start, start + rows)
            start += rows


def _check_about(path: Path, about: dict[str, Any]) -> None:
    """Write the description of a new store, or compare it with that of an existing one."""
    if not path.is_file() and not any(path.parent.glob("[!.]*.safetensors")):
        write_json(path, about)
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found != json.loads(json.dumps(about)):
        differing = sorted(key for key in found | about if found.get(key) != about.get(key))
        raise CacheError(
            f"{path.parent}: the folder was created for a different model or setting ({', '.join(differing)}); "
            "delete it, or set another data.cache_dir"
        )
