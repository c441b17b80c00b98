"""Write the items of a corpus to manifests, with parallel audio work and a journal for resuming.

Each item first becomes one line of the journal, in the order of the corpus. A later call skips the items whose lines
exist. At the end `ossicle.corpora.manifests` splits the journal. Memory does not grow with the corpus: the writer
holds a window of items, and keeps the set of ids on disk.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ossicle.addresses import is_address
from ossicle.audio import TOLERANCE_S, audio_duration_s
from ossicle.corpora.items import OTHER_FILE, Dropped, Item, Make, Options, Reached, Recording, printable
from ossicle.corpora.manifests import split
from ossicle.corpora.naming import Names
from ossicle.corpora.report import Report
from ossicle.data.manifest import manifest_line
from ossicle.errors import AudioError, CorpusError, MakeError
from ossicle.files import atomic
from ossicle.progress import Progress

JOURNAL_NAME = ".prepare.partial"
WINDOW = 256
"""Number of items that are read ahead of the one that is written. An item may hold its audio, about 0.5 MB."""
FLUSH_EVERY_S = 0.5
"""Time between two flushes of the journal, in seconds. A flush after every item would dominate the run time."""
GIVE_UP_AFTER = 1000
"""Number of items after which the writer stops if it could use none: the folder is then the wrong one."""
STATED_DURATION_TOLERANCE_S = 0.5
"""Largest difference between the duration in the corpus and that of the file; equal to the tolerance of datasets."""

FILE_ERRORS = frozenset((errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
                         errno.ENOTDIR, errno.EPERM))  # fmt: skip
"""Errors of one file. Others, such as a full disk, stop the preparation, which can resume."""

Result = Recording | Dropped


@dataclass(frozen=True)
class Limits:
    """The shortest and the longest duration of an utterance, in seconds."""

    min_s: float = 0.0
    max_s: float = float("inf")

    @classmethod
    def of(cls, options: Options) -> Limits:
        """Return the limits in ``options``."""
        return cls(options.min_s, options.max_s)


def progress_of(title: str, *, enabled: bool = True) -> Progress:
    """Return the display for `write`, which counts the share of the index that is done, in percent."""
    return Progress(title, 100, unit="%", enabled=enabled)


def write(
    items: Iterable[Item], out: Path, about: Mapping[str, Any], limits: Limits, pool: Executor, *, progress: Progress
) -> Report:
    """Write the manifests of ``items`` to the folder ``out``, or resume an interrupted call.

    Args:
        items: the items of the corpus, in an order that does not change between calls.
        out: folder for the manifests, which is created.
        about: corpus, source and options. A journal with another value is not resumed.
        limits: durations of the utterances to keep.
        pool: executor for the audio work. With processes, `Recording.make` must be picklable.
        progress: display made by `progress_of`.

    Raises:
        CorpusError: no item can be used, or the journal in ``out`` does not match ``items`` or ``about``.
    """
    out.mkdir(parents=True, exist_ok=True)
    journal = out / JOURNAL_NAME
    fill_journal(journal, Names(out).apply(items), about, Worker(out, limits), pool, progress=progress)
    return split(journal, out, about)


def fill_journal(
    journal: Path, items: Iterable[Item], about: Mapping[str, Any], work: Worker, pool: Executor, *, progress: Progress
) -> None:
    """Do the audio work of ``items``, and write a line for each to ``journal``, after those of an interrupted call.

    Raises `CorpusError` as `write` does.
    """
    done, last = _read_journal(journal, about)
    with journal.open("a", encoding="utf-8", newline="\n") as file:
        if not journal.stat().st_size:
            file.write(json.dumps(about) + "\n")
        kept, flushed = done > 0, time.monotonic()
        left = _remaining(items, done, last, journal)
        tried = 0
        with closing(_in_order(left, pool, work)) as results:
            for result in _show(results, done, progress):
                file.write(_entry(result, work.out) + "\n")
                if time.monotonic() - flushed > FLUSH_EVERY_S:
                    file.flush()
                    flushed = time.monotonic()
                kept = kept or isinstance(result, Recording)
                tried += not (isinstance(result, Dropped) and result.reason == OTHER_FILE)
                if tried == GIVE_UP_AFTER and not kept:
                    journal.unlink()
                    why = f"the first {tried} are all left out: {_why(result)}"
                    raise CorpusError(f"{work.out}: nothing written, {why}; check the folder of the corpus")


@dataclass(frozen=True)
class Worker:
    """Creates the audio of a recording if needed, and measures it. Picklable."""

    out: Path
    limits: Limits

    def __call__(self, recording: Recording) -> Result:
        """Return the recording with its durations, or why it cannot be used."""
        sample = recording.lines[0][1]
        if recording.make is not None:
            sample = replace(sample, audio=self.out / sample.audio)
        try:
            made = {} if recording.make is None else _make(sample.audio, recording.make)
            file_s = _file_duration_s(sample.audio)
        except MakeError as error:
            return Dropped(sample.id, "audio cannot be made", str(error))
        except AudioError as error:
            within = is_address(str(sample.audio))
            missing = recording.make is None and not within and not os.path.isfile(sample.audio)  # noqa: PTH113 - Path.is_file fails for long names
            return Dropped(sample.id, "no such audio file" if missing else "audio cannot be used", str(error))
        except OSError as error:
            if error.errno not in FILE_ERRORS:
                raise CorpusError(
                    f"{sample.audio}: {error.strerror}; correct this and run the command again"
                ) from error
            return Dropped(sample.id, "audio cannot be used", f"{sample.audio}: {error.strerror}")
        end_s = file_s if sample.end_s is None else sample.end_s
        duration_s = round(end_s - sample.start_s, 4)
        if sample.start_s >= file_s or end_s > file_s + TOLERANCE_S:
            detail = f"{sample.audio}: {sample.start_s}-{end_s} s of {file_s:.2f} s"
            return Dropped(sample.id, "segment outside its recording", detail)
        if duration_s <= 0:
            return Dropped(sample.id, "empty segment", f"{sample.audio}: {sample.start_s}-{end_s} s")
        stated_s = duration_s if sample.duration_s is None else sample.duration_s
        if abs(stated_s - duration_s) > STATED_DURATION_TOLERANCE_S:
            detail = f"{sample.audio}: lasts {duration_s:.2f} s, the corpus states {stated_s:.2f} s"
            return Dropped(sample.id, "duration differs from the stated one", detail)
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
    with atomic(path) as partial:
        return make(partial)


def _read_journal(journal: Path, about: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of finished items and the id of the last one, and remove an incomplete last line."""
    if not journal.exists():
        return 0, ""
    entries, last, good, head = 0, "", 0, None
    with journal.open("rb+") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break
            try:
                entry = json.loads(raw)
                last = entry.get("id", "")
            except (AttributeError, ValueError) as error:
                raise CorpusError(f"{journal}:{entries + 1}: is damaged; remove the file to start again") from error
            head = head or entry
            entries, good = entries + 1, good + len(raw)
        if head != dict(about) and entries > 1:
            raise CorpusError(
                f"{journal}: is an unfinished preparation of another corpus or of other options; finish or remove it"
            )
        file.truncate(good if head == dict(about) else 0)
    return max(entries - 1, 0), last


def _remaining(items: Iterable[Item], done: int, last: str, journal: Path) -> Iterator[Item]:
    """Yield the items after the first ``done``. Raises `CorpusError` if the source has changed since."""
    left = done
    for item in items:
        if isinstance(item, Reached) or not left:
            yield item
            continue
        left -= 1
        if not left and _id(item) != last:
            raise CorpusError(
                f"{journal}: the source has changed: item {done} was {last!r} and is now {_id(item)!r}; "
                "remove the file to start again"
            )
    if left:
        raise CorpusError(f"{journal}: the source has {left} fewer items than before; remove the file to start again")


def _in_order(
    items: Iterable[Item], pool: Executor, work: Callable[[Recording], Result]
) -> Generator[Item, None, None]:
    """Yield the items with the result of ``work`` for each recording. Closing cancels the work that has not begun."""
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


def _show(results: Iterable[Item], done: int, progress: Progress) -> Iterator[Result]:
    """Yield the results and show the share of the index, the recordings, their throughput and the hours of speech."""
    new, speech_s, started_s = 0, 0.0, time.monotonic()
    for result in results:
        if not isinstance(result, Reached):
            new += 1
            speech_s += 0.0 if isinstance(result, Dropped) else result.lines[0][1].duration_s or 0.0
            yield result
        elif new:
            rate = new / max(time.monotonic() - started_s, 1e-9)
            status = f"{done + new} recordings, {rate:.0f}/s, {speech_s / 3600:.2f} h"
            progress.update(100 * result.fraction, status=status)
        else:
            progress.begin_at(100 * result.fraction)  # an earlier call did this part


def _id(item: Result) -> str:
    return item.id if isinstance(item, Dropped) else item.lines[0][1].id


def _why(result: Result) -> str:
    return f"{result.reason} ({printable(result.detail or result.id)})" if isinstance(result, Dropped) else ""


def _entry(result: Result, out: Path) -> str:
    if isinstance(result, Dropped):
        entry: dict[str, Any] = {"id": result.id, "dropped": result.reason, "detail": printable(result.detail)}
    else:
        lines = [[name, manifest_line(line, out)] for name, line in result.lines]
        entry = {"id": _id(result), "duration_s": result.lines[0][1].duration_s, "lines": lines}
    return json.dumps(entry, ensure_ascii=False)
