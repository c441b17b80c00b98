"""Read FLEURS (Conneau et al., SLT 2022): the sentences of FLoRes-101, read aloud in 102 languages.

Recordings of one sentence in two languages are translations of each other. The tables have no header. Their columns
are sentence id, file, text, text without punctuation, characters, number of samples, and gender.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.items import (
    Dropped,
    Item,
    Options,
    Reached,
    Recording,
    asr_line,
    bad_row,
    clean,
    layout_error,
    read_lines,
    select,
    st_line,
    within_part,
)
from ossicle.errors import CorpusError

SPLITS = ("train", "dev", "test")
MIN_COLUMNS = 4


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``en_us.train`` and, for each selected target, ``en_us.train.st-de``."""
    if any((source / f"{split}.tsv").is_file() for split in SPLITS):
        available, source = [source.name], source.parent
    else:
        available = _folders(source) if source.is_dir() else []
    if not available:
        raise layout_error(CORPORA["fleurs"], source, "has no folder with train.tsv, dev.tsv, test.tsv")
    languages = [_folder(options.language, available, source)] if options.language else available
    parts = []
    for language in languages:
        splits = [split for split in SPLITS if (source / language / f"{split}.tsv").is_file()]
        parts += [(language, split) for split in select(options.splits, splits, "split", source / language)]
    targets = [_folder(target, _folders(source), source) for target in options.targets]
    for done, (language, split) in enumerate(parts):
        translations = {
            target: _translations(source / target / f"{split}.tsv") for target in targets if target != language
        }
        for item in _read_split(source / language, split, translations, options):
            yield within_part(item, done, len(parts))


def _folders(source: Path) -> list[str]:
    """Return the names of the folders with the table of a split."""
    return sorted({path.parent.name for split in SPLITS for path in source.glob(f"*/{split}.tsv")})


def _folder(language: str, available: list[str], source: Path) -> str:
    """Return the folder of a language such as ``de_de``, or ``de`` if one folder begins with it."""
    fitting = [name for name in available if name == language or name.partition("_")[0] == language]
    if len(fitting) != 1:
        raise CorpusError(
            f"{source}: {len(fitting)} folders match the language {language!r}; choose one of {', '.join(available)}"
        )
    return fitting[0]


def code(folder: str) -> str:
    """Return the language code of a folder, such as ``de`` for ``de_de``; Mandarin (``cmn``) is ``zh``."""
    short = folder.partition("_")[0]
    return "zh" if short == "cmn" else short


@dataclass(frozen=True)
class _Row:
    sentence: str
    file: str
    text: str
    gender: str
    where: str


def _rows(path: Path) -> Iterator[tuple[_Row | Dropped, float]]:
    """Yield the rows, each with the share of the file that is read."""
    for number, line, fraction in read_lines(path):
        cells, where = line.split("\t"), f"{path}:{number}"
        if len(cells) >= MIN_COLUMNS and cells[0].isdecimal() and cells[1].strip():
            gender = cells[6].lower() if len(cells) > 6 else ""
            yield _Row(cells[0], cells[1], clean(cells[2]), gender, where), fraction
        elif line.strip():
            yield bad_row(where, "expected id, file, text, ... separated by tabs, without a header"), fraction


def _translations(path: Path) -> dict[str, str]:
    """Return the text of each sentence, a few thousand. The preparation of this language lists its invalid rows."""
    return {row.sentence: row.text for row, _ in _rows(path) if isinstance(row, _Row) and row.text}


def _read_split(folder: Path, split: str, translations: dict[str, dict[str, str]], options: Options) -> Iterator[Item]:
    audio = next((path for path in (folder / "audio" / split, folder / split) if path.is_dir()), None)
    if audio is None:
        raise layout_error(
            CORPORA["fleurs"],
            folder / "audio" / split,
            "there is no such folder; unpack the archive of the split there",
        )
    name = f"{folder.name}.{split}"
    for row, fraction in _rows(folder / f"{split}.tsv"):
        yield row if isinstance(row, Dropped) else _item(row, audio, name, translations, options)
        yield Reached(fraction)


def _item(row: _Row, audio: Path, name: str, translations: dict[str, dict[str, str]], options: Options) -> Item:
    sample = Sample(
        id=Path(row.file).stem,
        audio=audio / row.file,
        text=row.text or None,
        language=code(name.rpartition(".")[0]),
        extra={"sentence": row.sentence} | ({"gender": row.gender} if row.gender in ("female", "male") else {}),
        source=row.where,
    )
    lines = [(name, asr_line(sample, options))] if row.text and options.wants("asr") else []
    for target, sentences in translations.items():
        if options.wants("st") and row.sentence in sentences:
            translation = sentences[row.sentence]
            lines.append((f"{name}.st-{code(target)}", st_line(sample, code(target), translation, options)))
    return Recording(tuple(lines)) if lines else Dropped(sample.id, "no text for these tasks")
