"""Split the journal of a preparation into the manifests, ``dropped.jsonl`` and ``prepare.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from ossicle.corpora.items import Dropped, printable
from ossicle.corpora.report import REPORT_NAME, Report
from ossicle.errors import CorpusError
from ossicle.files import atomic

LOCK_NAME = ".prepare.lock"
MAX_OPEN = 64
"""Number of manifests that are open together. A corpus may have more than a process may open."""


@contextmanager
def locked(out: Path, name: str = LOCK_NAME) -> Iterator[None]:
    """Create the folder ``out`` and hold its lock ``name``. The system releases the lock of a process that was killed.

    Raises `CorpusError` if another process has the lock.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CorpusError(f"{out}: another process is writing this folder; wait for it, or choose another") from error
    try:
        yield
    finally:
        lock.release()


def split(journal: Path, out: Path, about: Mapping[str, Any]) -> Report:
    """Write the manifests from the journal, then the report, and remove the journal."""
    report = Report(dict(about))
    try:
        with ExitStack() as stack:  # an error removes all partial manifests
            with _Manifests(out, stack) as manifests:
                _distribute(journal, report, manifests)
            if not report.manifests:
                why = report.main_reason()
                raise CorpusError(f"{out}: nothing written, because no utterance can be used: {why}")
    except CorpusError:
        journal.unlink()
        raise
    report.save(out / REPORT_NAME)
    journal.unlink()
    return report


def _distribute(journal: Path, report: Report, manifests: _Manifests) -> None:
    """Write each line of the journal to its manifest, and count it."""
    with journal.open(encoding="utf-8", newline="\n") as entries:
        next(entries)  # the first line describes the corpus
        for entry in map(json.loads, entries):
            if "dropped" in entry:
                dropped = Dropped(printable(entry["id"]), entry["dropped"], entry["detail"])
                report.drop(dropped)
                content = {"id": dropped.id, "reason": dropped.reason, "detail": dropped.detail}
                manifests.add("dropped", json.dumps(content, ensure_ascii=False))
                continue
            counted = set()
            for name, line in entry["lines"]:
                manifests.add(name, line)
                report.count(name, entry["duration_s"] if name not in counted else None)
                counted.add(name)


class _Manifests:
    """JSONL files by name, which get their names when ``stack`` closes without an error."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self._out, self._stack = out, stack
        self._partial: dict[str, Path] = {}
        self._open: dict[str, TextIO] = {}  # the one that was used last is at the end

    def __enter__(self) -> _Manifests:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._open.values():
            file.close()

    def add(self, name: str, line: str) -> None:
        """Write a line to ``name.jsonl``."""
        if name not in self._partial:
            self._partial[name] = self._stack.enter_context(atomic(self._out / f"{name}.jsonl"))
        file = self._open.pop(name, None) or self._partial[name].open("a", encoding="utf-8", newline="\n")
        self._open[name] = file
        file.write(line + "\n")
        if len(self._open) > MAX_OPEN:
            self._open.pop(next(iter(self._open))).close()
