"""From the items of a corpus to manifests: probes and makes audio in parallel, counts, and continues after a stop.

Everything goes to a journal first, one line for each item in the order in which the corpus yields them; an item whose
line is there is done. At the end the journal is split into the manifests, ``dropped.jsonl`` and ``prepare.json``.
Memory does not grow with the corpus: a window of items, and an on-disk set of the ids.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from ossicle.audio import TOLERANCE_S, audio_duration_s
from ossicle.corpora.disk import DiskDict
from ossicle.corpora.items import Dropped, Item, Make, Options, Reached, Recording
from ossicle.corpora.report import REPORT_NAME, Bar, Report
from ossicle.data.dataset import DURATION_TOLERANCE_S
from ossicle.data.manifest import manifest_line
from ossicle.errors import AudioError, CorpusError, MakeError

JOURNAL_NAME = ".prepare.partial"
WINDOW = 256
"""Items that are read ahead of the one that is written. Some hold their audio, about 0.5 MB each."""
FLUSH_EVERY_S = 0.5
"""How much work a killed call can lose, beside what is in the window. After every item would take most of the time."""
GIVE_UP_AFTER = 1000
"""If that many are dropped before the first one is kept, the folder is the wrong one."""

Result = Recording | Dropped


@dataclass(frozen=True)
class Limits:
    """What an utterance may last, in seconds."""

    min_s: float = 0.0
    max_s: float = float("inf")

    @classmethod
    def of(cls, options: Options) -> Limits:
        """Those a user chose."""
        return cls(options.min_s, options.max_s)


def write(
    items: Iterable[Item], out: Path, about: Mapping[str, Any], limits: Limits, pool: Executor, *, bar: Bar
) -> Report:
    """Write the manifests of ``items`` to the folder ``out``; a call that was stopped is continued.

    ``about`` says what is prepared: a folder that holds something else is refused. ``pool`` runs the work; in a pool of
    processes, `Recording.make` must be picklable. Raises `CorpusError` if nothing can be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    journal = out / JOURNAL_NAME
    done, last = _resume(journal, about)
    bar.start(done)
    work = _Worker(out, limits)
    with journal.open("a", encoding="utf-8", newline="\n") as file:
        if not journal.stat().st_size:
            file.write(json.dumps(about) + "\n")
        kept, flushed = done > 0, time.monotonic()
        with closing(_in_order(_after(items, done, last, journal), pool, work)) as results:
            for number, result in enumerate(_told(results, bar)):
                file.write(_entry(result, out) + "\n")
                if time.monotonic() - flushed > FLUSH_EVERY_S:
                    file.flush()
                    flushed = time.monotonic()
                kept = kept or isinstance(result, Recording)
                if number + 1 == GIVE_UP_AFTER and not kept:
                    journal.unlink()
                    why = f"the first {number + 1} are all left out: {_why(result)}"
                    raise CorpusError(f"{out}: nothing written, {why}")
    return _split(journal, out, about)


@dataclass(frozen=True)
class _Worker:
    """Makes the audio where there is none yet, and measures it. Picklable."""

    out: Path
    limits: Limits

    def __call__(self, recording: Recording) -> Result:
        sample = recording.lines[0][1]
        if recording.make is not None:
            sample = replace(sample, audio=self.out / sample.audio)
        try:
            made = {} if recording.make is None else _make(sample.audio, recording.make)
            file_s = _file_duration_s(sample.audio)
        except MakeError as error:
            return Dropped(sample.id, "audio cannot be made", str(error))
        except AudioError as error:
            missing = recording.make is None and not sample.audio.is_file()
            return Dropped(sample.id, "no such audio file" if missing else "audio cannot be used", str(error))
        end_s = file_s if sample.end_s is None else sample.end_s
        duration_s = round(end_s - sample.start_s, 4)
        if sample.start_s >= file_s or end_s > file_s + TOLERANCE_S:
            detail = f"{sample.audio}: {sample.start_s}-{end_s} s of {file_s:.2f} s"
            return Dropped(sample.id, "segment outside its recording", detail)
        stated_s = duration_s if sample.duration_s is None else sample.duration_s
        if abs(stated_s - duration_s) > DURATION_TOLERANCE_S:
            detail = f"{sample.audio}: lasts {duration_s:.2f} s, the corpus states {stated_s:.2f} s"
            return Dropped(sample.id, "another duration than stated", detail)
        if not self.limits.min_s <= duration_s <= self.limits.max_s:
            side = "short" if duration_s < self.limits.min_s else "long"
            return Dropped(sample.id, f"too {side}", f"{sample.audio}: {duration_s:.2f} s")
        lines = [(name, replace(line, audio=sample.audio, duration_s=duration_s)) for name, line in recording.lines]
        lines[0] = lines[0][0], replace(lines[0][1], extra={**lines[0][1].extra, **made})
        return Recording(tuple(lines))


@lru_cache(maxsize=256)  # a long recording has thousands of segments
def _file_duration_s(path: Path) -> float:
    return audio_duration_s(path)


def _make(path: Path, make: Make) -> Mapping[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")  # the suffix stays: it may decide the format
    try:
        made = make(partial)
        partial.replace(path)  # a file is there only when it is complete
        return made
    finally:
        partial.unlink(missing_ok=True)


def _resume(journal: Path, about: Mapping[str, Any]) -> tuple[int, str]:
    """How many items an earlier call finished, and the id of the last; cuts off a line it did not finish."""
    if not journal.exists():
        return 0, ""
    entries, last, good, head = 0, "", 0, None
    with journal.open("rb+") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break
            entry = json.loads(raw)
            head = head or entry
            entries, last, good = entries + 1, entry.get("id", ""), good + len(raw)
        if head != dict(about) and entries > 1:
            raise CorpusError(f"{journal}: is an unfinished preparation of something else; finish or remove it")
        file.truncate(good if head == dict(about) else 0)
    return max(entries - 1, 0), last


def _after(items: Iterable[Item], done: int, last: str, journal: Path) -> Iterator[Item]:
    """The items from the first that is not done; raises `CorpusError` where the source is no longer the same."""
    left = done
    for item in items:
        if isinstance(item, Reached) or not left:
            yield item
            continue
        left -= 1
        if not left and _id(item) != last:
            raise CorpusError(
                f"{journal}: stopped after {last!r}, where {_id(item)!r} is now: the source has changed; "
                "remove the file to begin anew"
            )
    if left:
        raise CorpusError(f"{journal}: has {left} more than the source has now; remove the file to begin anew")


def _in_order(
    items: Iterable[Item], pool: Executor, work: Callable[[Recording], Result]
) -> Generator[Item, None, None]:
    """The items, a recording as what ``work`` made of it; closing it cancels what has not begun."""
    waiting: deque[Future[Result] | Item] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item) if isinstance(item, Recording) else item)
            if len(waiting) >= WINDOW:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for entry in waiting:
            if isinstance(entry, Future):
                entry.cancel()


def _result(entry: Future[Result] | Item) -> Item:
    return entry.result() if isinstance(entry, Future) else entry


def _told(results: Iterable[Item], bar: Bar) -> Iterator[Result]:
    """The results, the bar moved on for each."""
    for result in results:
        if isinstance(result, Reached):
            bar.reach(result.fraction)
            continue
        bar.count(0.0 if isinstance(result, Dropped) else result.lines[0][1].duration_s or 0.0)
        yield result


def _id(item: Result) -> str:
    return item.id if isinstance(item, Dropped) else item.lines[0][1].id


def _why(result: Result) -> str:
    return f"{result.reason} ({result.detail or result.id})" if isinstance(result, Dropped) else ""


def _entry(result: Result, out: Path) -> str:
    if isinstance(result, Dropped):
        entry: dict[str, Any] = {"id": result.id, "dropped": result.reason, "detail": result.detail}
    else:
        lines = [[name, line.id, manifest_line(line, out)] for name, line in result.lines]
        entry = {"id": _id(result), "duration_s": result.lines[0][1].duration_s, "lines": lines}
    return json.dumps(entry, ensure_ascii=False)


def _split(journal: Path, out: Path, about: Mapping[str, Any]) -> Report:
    """The manifests from the journal, complete or not at all; then the report, which says that all is done."""
    report, seen, files = Report(dict(about)), DiskDict(), _Files(out)

    def drop(dropped: Dropped) -> None:
        report.drop(dropped)
        entry = {"id": dropped.id, "reason": dropped.reason, "detail": dropped.detail}
        files.add("dropped", json.dumps(entry, ensure_ascii=False))

    with files, journal.open(encoding="utf-8", newline="\n") as entries:
        next(entries)  # what it is about
        for entry in map(json.loads, entries):
            if "dropped" in entry:
                drop(Dropped(entry["id"], entry["dropped"], entry["detail"]))
                continue
            counted = set()
            for name, line_id, line in entry["lines"]:
                if not seen.add(f"{name}\n{line_id}"):
                    drop(Dropped(line_id, "id occurs twice", f"in {name}.jsonl; the first is kept"))
                    continue
                files.add(name, line)
                report.count(name, entry["duration_s"] if name not in counted else None)
                counted.add(name)
    if report.manifests:
        files.publish()
        report.save(out / REPORT_NAME)
        journal.unlink()
        return report
    files.remove()
    journal.unlink()
    raise CorpusError(f"{out}: nothing written, as nothing can be used: {report.first_reason()}")


class _Files:
    """JSONL files by name, under other names until `publish`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, line: str) -> None:
        """Write a line to ``name.jsonl``."""
        if name not in self._files:
            self._files[name] = self._partial(name).open("w", encoding="utf-8", newline="\n")
        self._files[name].write(line + "\n")

    def publish(self) -> None:
        """Give the files their names."""
        for name in self._files:
            self._partial(name).replace(self._out / f"{name}.jsonl")

    def remove(self) -> None:
        """Leave nothing behind."""
        for name in self._files:
            self._partial(name).unlink()

    def _partial(self, name: str) -> Path:
        return self._out / f".{name}.jsonl.partial"
