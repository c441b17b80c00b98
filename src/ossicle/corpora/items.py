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

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import Corpus
from ossicle.errors import CorpusError
from ossicle.prompts import LANGUAGE_NAMES, TRANSLATE_INSTRUCTION

OTHER_FILE = "file that is not read"
"""Reason for files in the folder of a corpus that are neither audio nor transcripts."""
MAX_DETAIL = 400
"""Number of characters of an id or a description in the list of left out utterances."""
BAD_ROW = (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError)
"""Errors that a row with values of other types or with missing fields causes. `CorpusError` is among them."""


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


def select(wanted: tuple[str, ...], available: list[str], what: str, source: Path) -> list[str]:
    """Return the ``wanted`` names in their order, or all available names if none are wanted.

    Raises `CorpusError` for a name that is not available.
    """
    missing = [name for name in wanted if name not in available]
    if missing:
        raise CorpusError(f"{source}: has no {what} {missing[0]!r}; choose from {', '.join(available) or 'none'}")
    return list(wanted) or available


def bad_row(where: str, error: object, name: str = "") -> Dropped:
    """Return the entry for a row that is left out.

    Args:
        where: ``file:line`` of the row.
        error: what is wrong with it; a text, or an exception in `BAD_ROW`.
        name: id of the row; by default, the name of the file and the line.
    """
    problem = f"has no field {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    detail = problem if problem.startswith(where) else f"{where}: {problem}"
    return Dropped(name or Path(where).name, "invalid row", detail)


def printable(text: str) -> str:
    """Return the text as valid Unicode without control characters. The middle of a long text is left out."""
    text = text.encode("utf-8", "backslashreplace").decode()
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= MAX_DETAIL else f"{text[: MAX_DETAIL // 2]}…{text[1 - MAX_DETAIL // 2 :]}"


def clean(text: str | None) -> str:
    """Return the text with single spaces instead of other white space, or an empty string for None.

    Raises `TypeError` if the value is not a text.
    """
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{str(text)[:60]!r} is of type {type(text).__name__}, not a text")
    return " ".join((text or "").split())


def label(value: Any, name: str) -> str | None:
    """Return an id, a speaker or a language as a text, or None if it is empty. Tables may hold numbers.

    Raises `TypeError` with ``name`` for other types.
    """
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f'"{name}" is {str(value)[:60]!r}, which is not a text')
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def parse_record(line: str, where: str, wanted: str) -> dict[str, Any]:
    """Return the JSON object on a line. Raises `CorpusError` with ``where`` (file:line) and the ``wanted`` format."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
        raise CorpusError(f"{where}: is not JSON ({error}); expected {wanted}") from error
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: is not a JSON object; expected {wanted}")
    return record


def read_lines(path: Path) -> Iterator[tuple[int, str, float]]:
    """Yield number, text and the share of the file that is read, for each line.

    Bytes that are not UTF-8 become lone surrogates. The writer leaves out utterances that contain one. Raises
    `CorpusError` if the file does not exist.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: there is no such file; check that the corpus is complete")
    size, done = max(path.stat().st_size, 1), 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            done += len(raw)
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
            yield number, text.rstrip("\r\n"), done / size


@dataclass(frozen=True)
class Row:
    """A row of a table, and its place."""

    cells: dict[str, str]
    """Cells by the name of their column."""
    where: str
    """``file:line``."""


def read_tsv(path: Path, *columns: str, escaped: bool = False) -> Iterator[tuple[Row | Dropped, float]]:
    """Yield the rows, each with the share of the file that is read. A row with missing or extra cells is `Dropped`.

    Tabs separate the cells, and quotation marks are plain characters, as in Common Voice, whose sentences may start
    with one. With ``escaped``, a backslash is removed and the next character is kept. Raises `CorpusError` if a column
    is missing.
    """
    names: list[str] = []
    for number, line, fraction in read_lines(path):
        cells = _split_escaped(line) if escaped else line.split("\t")
        where = f"{path}:{number}"
        if not names:
            names = cells
            missing = [name for name in columns if name not in names]
            if missing:
                raise CorpusError(
                    f"{path}:1: has no column {missing[0]!r}; its columns are {printable(', '.join(names))}"
                )
        elif line and len(cells) != len(names):
            problem = f"has {len(cells)} cells, line 1 has {len(names)}; check for a missing or extra tab"
            yield bad_row(where, problem), fraction
        elif line:
            yield Row(dict(zip(names, cells, strict=True)), where), fraction


def _split_escaped(line: str) -> list[str]:
    """Return the cells of a line, or none if it has bare line ends or a cell of more than 128 KiB."""
    try:
        return next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"), [])
    except csv.Error:
        return []


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
