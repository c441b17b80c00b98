"""Define the items that a corpus yields, and the helpers that several corpora share.

A corpus is a generator function ``read(source, options)``. It must yield its items in the same order in every call,
because an interrupted preparation resumes by position. There are three kinds of items:

- `Recording`: a recording or segment, and the manifest lines about it;
- `Dropped`: an utterance that cannot be used, and the reason;
- `Reached`: the share of the index that is read, from which the remaining time is estimated.

A corpus raises `CorpusError` if ``source`` does not have the expected layout. It does not open audio files: the writer
does so in parallel.
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
    """The part of a corpus to prepare. An empty value selects everything, or the default of the corpus."""

    splits: tuple[str, ...] = ()
    language: str | None = None
    """Spoken language."""
    targets: tuple[str, ...] = ()
    """Target languages of translations."""
    subsets: tuple[str, ...] = ()
    """Subsets of GigaSpeech."""
    tasks: tuple[str, ...] = ()
    """Tasks to write lines for, such as ``asr`` and ``st``."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of columns or keys by the name of their field in Ossicle."""
    audio: str | None = None
    """Folder with the audio of a corpus whose tables contain none."""
    lower: bool = False
    """Write transcripts in lower case."""
    min_s: float = 0.0
    """Shortest utterance to keep, in seconds."""
    max_s: float = float("inf")
    """Longest utterance to keep, in seconds."""

    def wants(self, task: str) -> bool:
        """Return True if lines of this task are selected."""
        return not self.tasks or task in self.tasks


Make = Callable[[Path], Mapping[str, Any]]
"""A function that writes an audio file, and returns fields for its manifest line."""


@dataclass(frozen=True)
class Recording:
    """A recording or segment and the manifest lines about it."""

    lines: tuple[tuple[str, Sample], ...]
    """Pairs of the manifest's name and a line. All lines have the same audio; the writer measures its duration."""
    make: Make | None = None
    """A function that creates the audio, or None if the file exists. The path of the audio is then relative to the
    output folder. The function runs in a thread or in another process. Its result (such as word times) is added to the
    first line."""


@dataclass(frozen=True)
class Dropped:
    """An utterance that is left out."""

    id: str
    reason: str
    """A short general reason; the report counts the utterances of each."""
    detail: str = ""
    """A description of this case."""


@dataclass(frozen=True)
class Reached:
    """A point in the index of the corpus."""

    fraction: float
    """Share of the index that is read, from 0 to 1."""


Item = Recording | Dropped | Reached


def within_part(item: Item, part: int, parts: int) -> Item:
    """Return ``item`` for the whole corpus, given its part of ``parts``. This changes the fraction of `Reached`."""
    return Reached((part + item.fraction) / parts) if isinstance(item, Reached) else item


def layout_error(corpus: Corpus, path: Path, problem: str) -> CorpusError:
    """Return the error for a source with another layout."""
    return CorpusError(f"{path}: {problem}; expected {corpus.layout}")


def subfolder(source: Path, name: str) -> Path:
    """Return ``source/name``, or ``source`` if it is that folder itself."""
    return source if source.name == name and not (source / name).is_dir() else source / name


def select(wanted: tuple[str, ...], available: list[str], what: str, source: Path) -> list[str]:
    """Return the ``wanted`` names in their order, or all available names if none are wanted.

    Raises `CorpusError` for a name that is not available.
    """
    missing = [name for name in wanted if name not in available]
    if missing:
        raise CorpusError(f"{source}: has no {what} {missing[0]!r}; choose from {', '.join(available) or 'none'}")
    return list(wanted) or available


def clean(text: str | None) -> str:
    """Return the text with single spaces instead of other white space, or an empty string for None."""
    return " ".join((text or "").split())


def parse_record(line: str, where: str, wanted: str) -> dict[str, Any]:
    """Return the JSON object on a line. Raises `CorpusError` with ``where`` (file:line) and the ``wanted`` format."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: is not JSON ({error}); expected {wanted}") from error
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: is not a JSON object; expected {wanted}")
    return record


def read_lines(path: Path) -> Iterator[tuple[int, str, float]]:
    """Yield number, text and the share of the file that is read, for each line.

    Raises `CorpusError` if the file does not exist or is not UTF-8.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: there is no such file; check that the corpus is complete")
    size, done = max(path.stat().st_size, 1), 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            done += len(raw)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(f"{path}:{number}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
            yield number, text.rstrip("\r\n"), done / size


def read_tsv(path: Path, *columns: str) -> Iterator[tuple[dict[str, str], float]]:
    """Yield the rows by column name, each with the share of the file that is read.

    Tabs separate the cells, and quotation marks are plain characters, as in Common Voice, whose sentences may start
    with one. Raises `CorpusError` if a column or a cell is missing.
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
            raise CorpusError(
                f"{path}:{number}: has {len(cells)} cells, line 1 has {len(names)}; check for a missing or extra tab"
            )
        if line:
            yield dict(zip(names, cells, strict=True)), fraction


def asr_line(sample: Sample, options: Options) -> Sample:
    """Return the line with the transcript. Stage 1 and the task ``asr`` of stage 2 use it."""
    text = clean(sample.text) or None
    return replace(sample, task="asr", text=text.lower() if text and options.lower else text)


def st_line(sample: Sample, target: str, translation: str, options: Options) -> Sample:
    """Return the line that asks for a translation of ``sample`` to the language ``target``."""
    return replace(
        asr_line(sample, options),
        id=f"{sample.id}-{target}",
        task="st",
        instruction=TRANSLATE_INSTRUCTION.format(language=LANGUAGE_NAMES.get(target, target)),
        answers=(clean(translation),),
        target_language=target,
    )


def files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, float]]:
    """Yield the files with one of the suffixes at any depth, each with the share of the folders that is read.

    The files of each folder are sorted by name. Memory holds the names in the current folder and those above it.
    """
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for index, entry in enumerate(entries):
        if entry.is_dir():
            for path, fraction in files_below(Path(entry.path), suffixes):
                yield path, (index + fraction) / len(entries)
        elif entry.name.lower().endswith(suffixes):
            yield Path(entry.path), (index + 1) / len(entries)


def resolve_audio(folder: Path, path: str) -> Path:
    """Resolve a path relative to ``folder`` or, if it exists only there, to the working directory."""
    below = folder / path
    return Path(path) if not below.exists() and Path(path).exists() else below


def find_audio(stem: Path) -> Path | None:
    """Return the audio file with this path and any suffix, or None."""
    # Path.with_suffix would cut names such as en.20080901.22.1-097.
    candidates = (stem.with_name(stem.name + suffix) for suffix in AUDIO_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
