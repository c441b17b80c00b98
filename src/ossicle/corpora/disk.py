"""Large indices and lookups in constant memory."""

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
CHUNK_CHARACTERS = 1 << 20


class DiskDict:
    """Strings by string, in a private temporary database: in memory while small, in a temporary file beyond 64 MiB."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # the empty name: temporary, gone with the connection
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE items (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def add(self, key: str, value: str = "") -> bool:
        """Keep ``value`` unless the key has one already; whether it was new."""
        return self._database.execute("INSERT OR IGNORE INTO items VALUES (?, ?)", (key, value)).rowcount == 1

    def get(self, key: str) -> str | None:
        """The value of ``key``."""
        row = self._database.execute("SELECT value FROM items WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]


def read_json_array(path: Path, key: str) -> Iterator[tuple[Any, float]]:
    """The objects of the array ``key`` of a JSON file, one at a time, each with the share of the file read.

    The key must be one of the outermost object's, and come before any inner one of the same name. Raises `CorpusError`
    where it is missing, or the file ends too early.
    """
    decoder = json.JSONDecoder()
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8") as file:
        buffer = file.read(CHUNK_CHARACTERS)
        start = re.search(rf'"{re.escape(key)}"\s*:\s*\[', buffer)
        if start is None:
            raise CorpusError(f'{path}: has no array "{key}" near its start')
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
                    raise CorpusError(f'{path}: breaks off within "{key}" ({error.msg}); fetch it again') from error
                buffer, position = buffer[position:] + more, 0
                continue
            yield value, raw.tell() / size


def _next_value(buffer: str, position: int) -> int:
    while position < len(buffer) and buffer[position] in ", \t\r\n":
        position += 1
    return position
