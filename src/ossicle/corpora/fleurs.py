"""Read FLEURS (Conneau et al., SLT 2022): the sentences of FLoRes-101, read aloud in 102 languages.

Recordings of one sentence in two languages are translations of each other. The tables have no header. Their columns
are sentence id, file, text, text without punctuation, characters, number of samples, and gender.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        available = (
            sorted(path.name for path in source.iterdir() if (path / "test.tsv").is_file()) if source.is_dir() else []
        )
    if not available:
        raise layout_error(CORPORA["fleurs"], source, "has no folder with train.tsv, dev.tsv, test.tsv")
    languages = [_folder(options.language, available, source)] if options.language else available
    parts = []
    for language in languages:
        splits = [split for split in SPLITS if (source / language / f"{split}.tsv").is_file()]
        parts += [(language, split) for split in select(options.splits, splits, "split", source / language)]
    all_folders = sorted(path.parent.name for path in source.glob("*/test.tsv"))
    targets = [_folder(target, all_folders, source) for target in options.targets]
    for done, (language, split) in enumerate(parts):
        translations = {
            target: {sentence: text for sentence, _, text, _, _ in _rows(source / target / f"{split}.tsv")}
            for target in targets
            if target != language
        }  # a few thousand sentences
        for item in _read_split(source / language, split, translations, options):
            yield within_part(item, done, len(parts))


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


def _rows(path: Path) -> Iterator[tuple[str, str, str, str | None, float]]:
    """Yield sentence id, file, text, gender and the share of the file that is read."""
    for number, line, fraction in read_lines(path):
        cells = line.split("\t")
        if len(cells) < MIN_COLUMNS or not cells[0].isdecimal():
            raise CorpusError(f"{path}:{number}: expected id, file, text, ... separated by tabs, without a header")
        yield cells[0], cells[1], clean(cells[2]), cells[6].lower() if len(cells) > 6 else None, fraction


def _read_split(folder: Path, split: str, translations: dict[str, dict[str, str]], options: Options) -> Iterator[Item]:
    audio = next((path for path in (folder / "audio" / split, folder / split) if path.is_dir()), None)
    if audio is None:
        raise layout_error(
            CORPORA["fleurs"],
            folder / "audio" / split,
            "there is no such folder; unpack the archive of the split there",
        )
    name = f"{folder.name}.{split}"
    for sentence, file, text, gender, fraction in _rows(folder / f"{split}.tsv"):
        sample = Sample(
            id=Path(file).stem,
            audio=audio / file,
            text=text or None,
            language=code(folder.name),
            extra={"sentence": sentence} | ({"gender": gender} if gender in ("female", "male") else {}),
        )
        lines = [(name, asr_line(sample, options))] if text and options.wants("asr") else []
        for target, sentences in translations.items():
            if options.wants("st") and sentence in sentences:
                lines.append((f"{name}.st-{code(target)}", st_line(sample, code(target), sentences[sentence], options)))
        yield Recording(tuple(lines)) if lines else Dropped(sample.id, "no text for these tasks")
        yield Reached(fraction)
