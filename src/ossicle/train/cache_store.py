"""Tensors on disk by key: what the frozen side computed once, memory-mapped, safe against a kill.

A store is a folder of shards, each a safetensors file and the index that makes it count, and ``about.json``, which says
what the tensors are. A store that is about something else is refused, never read.
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

ABOUT = "about.json"


class Store:
    """Tensors (rows, ...) of one kind by key; new ones are written once ``shard_rows`` have come together."""

    def __init__(self, folder: Path, about: Mapping[str, Any], *, shard_rows: int) -> None:
        """Open or make the store. Raises `CacheError` where the folder is about something else."""
        self.folder, self.shard_rows = folder, shard_rows
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder / ABOUT, dict(about))
        self._where: dict[str, tuple[Path, int, int]] = {}
        self._open: dict[Path, Any] = {}
        self._new: dict[str, Tensor] = {}
        self._new_rows = 0
        for index in sorted(self.folder.glob("*.json")):
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
            self._open[path] = safe_open(path, framework="pt").get_slice("values")
        values: Tensor = self._open[path][start:stop]
        return values

    @property
    def keys(self) -> list[str]:
        """Of all tensors, in the order in which they came."""
        return [*self._where, *self._new]

    @property
    def size_bytes(self) -> int:
        """On disk and waiting."""
        waiting = sum(values.numel() * values.element_size() for values in self._new.values())
        return waiting + sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def add(self, items: Iterable[tuple[str, Tensor]]) -> None:
        """Take in tensors (rows, ...) of one width and type, on any device."""
        for key, values in items:
            if key not in self:
                self._new[key] = values.detach().cpu()
                self._new_rows += len(values)
        if self._new_rows >= self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Write what waits: the tensors first, then the index that makes them count."""
        if not self._new:
            return
        name = hashlib.blake2b("".join(self._new).encode(), digest_size=8).hexdigest()
        save_file({"values": torch.cat(list(self._new.values()))}, self.folder / f"{name}.safetensors")
        index = self.folder / f"{name}.json"
        index.write_text(json.dumps({key: len(values) for key, values in self._new.items()}))
        self._new, self._new_rows = {}, 0
        self._add_index(index)

    def _add_index(self, index: Path) -> None:
        start = 0
        for key, rows in json.loads(index.read_text()).items():
            self._where[key] = (index.with_suffix(".safetensors"), start, start + rows)
            start += rows


def _claim(path: Path, about: dict[str, Any]) -> None:
    if not path.is_file() and not any(path.parent.glob("*.safetensors")):
        path.write_text(json.dumps(about, indent=2) + "\n")
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found != json.loads(json.dumps(about)):
        differing = sorted(key for key in found | about if found.get(key) != about.get(key))
        raise CacheError(f"{path.parent} was made with other {', '.join(differing)}: delete it or give another folder")
