"""Compute statistics of manifests, and find duplicates and leaks between them (`ossicle stats`).

The lines are kept in a temporary database on disk, so that a manifest of any length fits. Two lines share audio if they
have overlapping segments of one file; copies of a file are not detected. The manifests of one split (``train.jsonl``,
``train.st-de.jsonl``, ``train.qa.jsonl`` in one folder) share their audio on purpose and are not compared.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ossicle.audio import audio_duration_s
from ossicle.batch import Sample
from ossicle.data.manifest import iterate_manifest
from ossicle.errors import AudioError, DataError

QUANTILES = (0, 5, 25, 50, 75, 95, 100)
"""Quantiles that are computed, in percent."""
HISTOGRAM_S = (0, 1, 2, 5, 10, 15, 20, 30, 45, 60, 150)
"""Lower edges of the duration bins, in seconds."""
TASK = re.compile(r"\.(st-[\w-]+|qa|meta)$")
"""The task in the name of a manifest, without the suffix."""

_SCHEMA = """
PRAGMA cache_size = -65536;
PRAGMA journal_mode = OFF;
CREATE TABLE lines (manifest INTEGER, id TEXT, file TEXT, start_s REAL, end_s REAL, duration_s REAL, text TEXT,
                    words INTEGER, speaker TEXT, language TEXT, task TEXT, instruction TEXT);
"""
_RECORDINGS = """
CREATE INDEX by_manifest ON lines (manifest, file, start_s);
CREATE TABLE recordings AS SELECT manifest, file, start_s, max(end_s) AS end_s, max(duration_s) AS duration_s,
    max(text) AS text, max(words) AS words, max(speaker) AS speaker, max(language) AS language, min(id) AS id
    FROM lines GROUP BY manifest, file, start_s;
CREATE INDEX by_file ON recordings (file, manifest);
CREATE INDEX by_text ON recordings (text, manifest);
CREATE INDEX by_speaker ON recordings (speaker, manifest);
"""


def stats(manifests: Sequence[Path]) -> dict[str, Any]:
    """Return ``{"manifests": {path: figures}, "leaks": [...]}`` as the plain values that ``--json`` prints.

    The figures are seconds, words per second and counts. Durations, rates, languages and speakers count a recording
    once, even if several lines use it.

    Raises:
        ManifestError: a line is invalid.
        DataError: a manifest is named twice.
    """
    names = [str(path) for path in manifests]
    if len(set(names)) < len(names):
        raise DataError("a manifest is named twice; name each manifest once")
    database = sqlite3.connect("")  # the empty name makes a temporary database
    database.executescript(_SCHEMA)
    unreadable = []
    for number, path in enumerate(manifests):
        count = [0]
        rows = (_row(number, sample, count) for sample in iterate_manifest(path))
        database.executemany(f"INSERT INTO lines VALUES ({', '.join('?' * 12)})", rows)
        unreadable.append(count[0])
    database.executescript(_RECORDINGS)
    figures = {name: _figures(database, number) for number, name in enumerate(names)}
    for name, count_unreadable in zip(names, unreadable, strict=True):
        figures[name]["unreadable"] = count_unreadable
    pairs = combinations(range(len(names)), 2)
    apart = ((a, b) for a, b in pairs if split_of(manifests[a]) != split_of(manifests[b]))
    leaks = [leak for a, b in apart for leak in _leaks(database, (a, names[a]), (b, names[b]))]
    return {"manifests": figures, "leaks": leaks}


def split_of(path: Path) -> Path:
    """Return the path without suffix and task, which is equal for the manifests of one split."""
    return path.resolve().with_name(TASK.sub("", path.name.removesuffix(".jsonl")))


def plain(text: str) -> str:
    """Return the lower-case words without punctuation. Two texts are equal if these words are."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def _row(manifest: int, sample: Sample, unreadable: list[int]) -> tuple[Any, ...]:
    duration_s = sample.duration_s
    if sample.end_s is not None:
        duration_s = sample.end_s - sample.start_s
    elif duration_s is None:
        try:
            duration_s = audio_duration_s(sample.audio) - sample.start_s
        except AudioError:
            unreadable[0] += 1
    text = plain(sample.text or "")
    return (
        manifest,
        sample.id,
        os.path.abspath(sample.audio),  # noqa: PTH100 - two manifests may name a file by different relative paths
        sample.start_s,
        None if duration_s is None else sample.start_s + duration_s,
        duration_s,
        hashlib.blake2b(text.encode(), digest_size=12).hexdigest() if text else None,
        len(text.split()) or None,
        sample.speaker,
        sample.language,
        "/".join(filter(None, (sample.task, sample.target_language))) or None,
        sample.instruction,
    )


def _figures(database: sqlite3.Connection, manifest: int) -> dict[str, Any]:
    def scalar(query: str) -> Any:
        return database.execute(query, {"m": manifest}).fetchone()[0]

    def counts(table: str, column: str) -> dict[str, int]:
        query = f"SELECT coalesce({column}, ''), count(*) FROM {table} WHERE manifest = :m GROUP BY 1 ORDER BY 2 DESC"
        return {name or "not given": count for name, count in database.execute(query, {"m": manifest})}

    of = "FROM recordings WHERE manifest = :m"
    rate = f"{of} AND words > 0 AND duration_s > 0"
    return {
        "lines": scalar("SELECT count(*) FROM lines WHERE manifest = :m"),
        "recordings": scalar(f"SELECT count(*) {of}"),
        "speech_s": round(scalar(f"SELECT coalesce(sum(duration_s), 0) {of}"), 3),
        "duration_s": _quantiles(database, "duration_s", f"{of} AND duration_s IS NOT NULL", manifest),
        "histogram_s": _histogram(database, manifest),
        "words_per_s": _quantiles(database, "words / duration_s", rate, manifest),
        "slowest": _first(database, f"SELECT id {rate} ORDER BY words / duration_s LIMIT 1", manifest),
        "fastest": _first(database, f"SELECT id {rate} ORDER BY words / duration_s DESC LIMIT 1", manifest),
        "without_text": scalar(f"SELECT count(*) {of} AND text IS NULL"),
        "speakers": scalar(f"SELECT count(DISTINCT speaker) {of}"),
        "without_speaker": scalar(f"SELECT count(*) {of} AND speaker IS NULL"),
        "languages": counts("recordings", "language"),
        "tasks": counts("lines", "task"),
        "duplicates": {
            "ids": _repeated(database, "id", "lines", manifest),
            "texts": _repeated(database, "text", "recordings", manifest),
            "audio": _repeated(database, "file, start_s, task, instruction", "lines", manifest),
        },
    }


def _quantiles(database: sqlite3.Connection, value: str, where: str, manifest: int) -> dict[str, float]:
    """Return the mean and the quantiles by percent, or an empty dictionary if there are no values."""
    count, mean = database.execute(f"SELECT count(*), avg({value}) {where}", {"m": manifest}).fetchone()
    if not count:
        return {}
    found: dict[str, float] = {"mean": round(mean, 3)}
    for percent in QUANTILES:
        query = f"SELECT {value} {where} ORDER BY 1 LIMIT 1 OFFSET {round(percent / 100 * (count - 1))}"
        found[str(percent)] = round(database.execute(query, {"m": manifest}).fetchone()[0], 3)
    return found


def _histogram(database: sqlite3.Connection, manifest: int) -> dict[str, int]:
    """Return the number of recordings by the lower edge of their duration bin, in seconds."""
    found = {}
    for low, high in zip(HISTOGRAM_S, (*HISTOGRAM_S[1:], 1e9), strict=True):
        query = "SELECT count(*) FROM recordings WHERE manifest = ? AND duration_s >= ? AND duration_s < ?"
        found[str(low)] = database.execute(query, (manifest, low, high)).fetchone()[0]
    return found


def _first(database: sqlite3.Connection, query: str, manifest: int) -> str | None:
    row = database.execute(query, {"m": manifest}).fetchone()
    return None if row is None else row[0]


def _repeated(database: sqlite3.Connection, columns: str, table: str, manifest: int) -> dict[str, Any]:
    """Return the number of rows that repeat the columns of an earlier row, and the id of one of them."""
    first = columns.partition(",")[0]
    groups = f"""SELECT count(*) - 1 AS more, min(id) AS id FROM {table}
                 WHERE manifest = ? AND {first} IS NOT NULL GROUP BY {columns} HAVING count(*) > 1"""
    count, example = database.execute(f"SELECT coalesce(sum(more), 0), min(id) FROM ({groups})", (manifest,)).fetchone()
    return {"count": count, "first": example}


def _leaks(database: sqlite3.Connection, a: tuple[int, str], b: tuple[int, str]) -> Iterable[dict[str, Any]]:
    """Yield what recordings of manifest ``b`` share with manifest ``a``: audio, text or speaker."""
    overlap = "one.file = two.file AND one.start_s < two.end_s AND two.start_s < one.end_s"
    for what, same in (("audio", overlap), ("text", "one.text = two.text"), ("speaker", "one.speaker = two.speaker")):
        query = f"""SELECT count(*), min(two.id) FROM recordings AS two WHERE two.manifest = ? AND EXISTS
                    (SELECT 1 FROM recordings AS one WHERE one.manifest = ? AND {same})"""
        count, example = database.execute(query, (b[0], a[0])).fetchone()
        if count:
            yield {"what": what, "of": b[1], "in": a[1], "recordings": count, "first": example}
