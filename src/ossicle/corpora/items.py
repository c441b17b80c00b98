"""What a corpus yields, and the helpers that several corpora share.

A corpus is a generator function ``read(source, options)``. It yields, in an order that does not change from call to
call (a preparation that was stopped continues by position), these three:

- `Recording`: one stretch of speech and the manifest lines about it;
- `Dropped`: something that the corpus itself says is no use, and why;
- `Reached`: how far into its index it is, so that the remaining time can be told.

It raises `CorpusError` where SOURCE is not laid out as expected. It opens no audio: the writer does, in parallel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import Corpus
from ossicle.errors import CorpusError
from ossicle.prompts import LANGUAGE_NAMES, TRANSLATE_INSTRUCTION

AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may choose. Empty: everything there is (or what the corpus says is usual)."""

    splits: tuple[str, ...] = ()
    language: str | None = None
    targets: tuple[str, ...] = ()
    """Languages to translate to."""
    subsets: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a field -> the column or key that holds it."""
    audio: str | None = None
    """Folder with the audio of a corpus whose lines lie elsewhere."""
    lower: bool = False
    """Write transcripts in lower case."""
    min_s: float = 0.0
    max_s: float = float("inf")

    def wants(self, task: str) -> bool:
        """Whether lines of this task are to be written."""
        return not self.tasks or task in self.tasks


Make = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Recording:
    """A stretch of speech (file, segment) and the lines about it: ``(name of the manifest, line)``.

    All lines have the same audio; its duration is measured by the writer. With ``make`` the audio does not exist yet:
    its path is relative to OUT, and ``make(path)`` writes it, in a thread or another process; the fields that it
    returns (times of words, say) are added to the first line.
    """

    lines: tuple[tuple[str, Sample], ...]
    make: Make | None = None


@dataclass(frozen=True)
class Dropped:
    """Left out. ``reason`` is one of few, to be counted; ``detail`` tells about this one."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Reached:
    """Share of the index that is read, from 0 to 1."""

    fraction: float


Item = Recording | Dropped | Reached


def expected(corpus: Corpus, path: Path, problem: str) -> CorpusError:
    """The error for a source laid out differently."""
    return CorpusError(f"{path}: {problem}; expected {corpus.layout}")


def subfolder(source: Path, name: str) -> Path:
    """``source/name``, or ``source`` itself where the user named that folder already."""
    return source if source.name == name and not (source / name).is_dir() else source / name


def chosen(wanted: tuple[str, ...], there: list[str], what: str, source: Path) -> list[str]:
    """The wanted ones in the wanted order, or all; raises `CorpusError` for one that is not there."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise CorpusError(f"{source}: has no {what} {missing[0]!r}; it has {', '.join(there) or 'none'}")
    return list(wanted) or there


def clean(text: str | None) -> str:
    """The text with its white space reduced to single spaces; empty for ``None``."""
    return " ".join((text or "").split())


def parse_record(line: str, where: str, wanted: str) -> dict[str, Any]:
    """The JSON object on a line. Raises `CorpusError` that says ``where`` (file:line), and what was ``wanted``."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: is not JSON ({error}); expected {wanted}") from error
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: is not a JSON object; expected {wanted}")
    return record


def read_lines(path: Path) -> Iterator[tuple[int, str, float]]:
    """Number, text and share of the file read, for each line; constant memory. Raises `CorpusError`."""
    if not path.is_file():
        raise CorpusError(f"{path}: there is no such file")
    size, done = max(path.stat().st_size, 1), 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            done += len(raw)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(f"{path}:{number}: is not UTF-8 text ({error.reason})") from error
            yield number, text.rstrip("\r\n"), done / size


def read_tsv(path: Path, *columns: str) -> Iterator[tuple[dict[str, str], float]]:
    """Rows by column name, and the share of the file read; raises `CorpusError` where a column or cell is missing.

    Tabs separate and nothing quotes, as in Common Voice, whose sentences may start with a quotation mark.
    """
    names: list[str] = []
    for number, line, fraction in read_lines(path):
        cells = line.split("\t")
        if not names:
            names = cells
            missing = [name for name in columns if name not in names]
            if missing:
                raise CorpusError(f"{path}:1: has no column {missing[0]!r}; its columns are {', '.join(names)}")
            continue
        if line and len(cells) != len(names):
            raise CorpusError(f"{path}:{number}: has {len(cells)} cells where line 1 has {len(names)}; a tab is amiss")
        if line:
            yield dict(zip(names, cells, strict=True)), fraction


def asr_line(sample: Sample, options: Options) -> Sample:
    """The line for stage 1; as ``asr`` without an instruction it also serves in stage 2."""
    text = clean(sample.text) or None
    return replace(sample, task="asr", text=text.lower() if text and options.lower else text)


def st_line(sample: Sample, target: str, translation: str, options: Options) -> Sample:
    """The line that asks for a translation of what ``sample`` says."""
    return replace(
        asr_line(sample, options),
        id=f"{sample.id}-{target}",
        task="st",
        instruction=TRANSLATE_INSTRUCTION.format(language=LANGUAGE_NAMES.get(target, target)),
        answers=(clean(translation),),
        target_language=target,
    )


def files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, float]]:
    """Files with one of the suffixes at any depth, sorted by name folder by folder, and the share of folders done.

    Memory: the names in the folders from ``folder`` down to the one being read.
    """
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for index, entry in enumerate(entries):
        if entry.is_dir():
            for path, fraction in files_below(Path(entry.path), suffixes):
                yield path, (index + fraction) / len(entries)
        elif entry.name.lower().endswith(suffixes):
            yield Path(entry.path), (index + 1) / len(entries)


def beside(folder: Path, path: str) -> Path:
    """A path in a file of ``folder``: relative to that or, if it is only there, to the working directory."""
    below = folder / path
    return Path(path) if not below.exists() and Path(path).exists() else below


def find_audio(stem: Path) -> Path | None:
    """The audio file with this path but for the suffix, or None."""
    # Not with_suffix: names such as en.20080901.22.1-097 have dots of their own.
    candidates = (stem.with_name(stem.name + suffix) for suffix in AUDIO_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
