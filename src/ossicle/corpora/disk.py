"""Store large lookup tables on disk, and read large JSON files in constant memory."""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ossicle.errors import CorpusError

CACHE_KIB = 65_536
"""Memory of a `DiskDict`, in KiB."""
CHUNK_CHARACTERS = 1 << 20
"""Number of characters that `read_json_array` reads together."""


class DiskDict:
    """A dictionary of strings in a temporary database, which moves from memory to a temporary file beyond 64 MiB."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # the empty name makes a temporary database
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE items (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def add(self, key: str, value: str = "") -> bool:
        """Store ``value`` and return True, or return False if the key has a value."""
        query = "INSERT OR IGNORE INTO items VALUES (?, ?)"
        return self._database.execute(query, (_encode(key), _encode(value))).rowcount == 1

    def put(self, key: str, value: str) -> None:
        """Store ``value``, and replace the one that the key has."""
        self._database.execute("INSERT OR REPLACE INTO items VALUES (?, ?)", (_encode(key), _encode(value)))

    def get(self, key: str) -> str | None:
        """Return the value of ``key``, or None."""
        row = self._database.execute("SELECT value FROM items WHERE key = ?", (_encode(key),)).fetchone()
        return None if row is None else _decode(row[0])

    def take(self, key: str) -> str | None:
        """Return the value of ``key`` and remove it, or return None."""
        found = self.get(key)
        if found is not None:
            self._database.execute("DELETE FROM items WHERE key = ?", (_encode(key),))
        return found

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield the keys and values, sorted by key."""
        for key, value in self._database.execute("SELECT key, value FROM items ORDER BY key"):
            yield _decode(key), _decode(value)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # bytes of the source that are not UTF-8 are lone surrogates


def _decode(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


def read_json_array(path: Path, key: str) -> Iterator[tuple[Any, float]]:
    """Yield the elements of the array ``key`` of a JSON file, each with the share of the file that is read.

    The key must belong to the outermost object and precede any inner key of the same name. Raises `CorpusError` if the
    key is missing near the start of the file, or if the file is cut off.
    """
    decoder = json.JSONDecoder()
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape") as file:
        buffer = file.read(CHUNK_CHARACTERS)
        start = re.search(rf'"{re.escape(key)}"\s*:\s*\[', buffer)
        if start is None:
            raise CorpusError(f'{path}: has no array "{key}" near its start; check that it is the index of the corpus')
        position = start.end()
        while True:
            position = _next_value(buffer, position)
            if buffer[position : position + 1] == "]":
                return
            try:
                value, position = decoder.raw_decode(buffer, position)
            except json.JSONDecodeError as error:
                more = file.read(max(CHUNK_CHARACTERS, len(buffer)))
                if not more:
                    raise CorpusError(f'{path}: is cut off within "{key}" ({error.msg}); download it again') from error
                buffer, position = buffer[position:] + more, 0
                continue
            yield value, raw.tell() / size


def _next_value(buffer: str, position: int) -> int:
    while position < len(buffer) and buffer[position] in ", \t\r\n":
        position += 1
    return position
