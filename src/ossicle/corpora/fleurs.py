"""FLEURS (Conneau et al., SLT 2022): the sentences of FLoRes-101 read in 102 languages, so also translations.

Its tables have no head; the columns are id of the sentence, file, text as written, text without punctuation,
characters, samples, gender.
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
    chosen,
    clean,
    expected,
    read_lines,
    st_line,
)
from ossicle.errors import CorpusError

SPLITS = ("train", "dev", "test")
LEAST_COLUMNS = 4


def read(source: Path, options: Options) -> Iterator[Item]:
    """Manifests ``en_us.train`` and, for each target asked for, ``en_us.train.st-de``."""
    if any((source / f"{split}.tsv").is_file() for split in SPLITS):
        there, source = [source.name], source.parent
    else:
        there = (
            sorted(path.name for path in source.iterdir() if (path / "test.tsv").is_file()) if source.is_dir() else []
        )
    if not there:
        raise expected(CORPORA["fleurs"], source, "has no folder with train.tsv, dev.tsv, test.tsv")
    languages = [_folder(options.language, there, source)] if options.language else there
    parts = []
    for language in languages:
        splits = [split for split in SPLITS if (source / language / f"{split}.tsv").is_file()]
        parts += [(language, split) for split in chosen(options.splits, splits, "split", source / language)]
    all_there = sorted(path.parent.name for path in source.glob("*/test.tsv"))
    targets = [_folder(target, all_there, source) for target in options.targets]
    for done, (language, split) in enumerate(parts):
        translations = {
            target: {sentence: text for sentence, _, text, _, _ in _rows(source / target / f"{split}.tsv")}
            for target in targets
            if target != language
        }  # a few thousand sentences
        for item in _read_split(source / language, split, translations, options):
            yield Reached((done + item.fraction) / len(parts)) if isinstance(item, Reached) else item


def _folder(language: str, there: list[str], source: Path) -> str:
    """The folder of ``de_de``, or of ``de`` where only one begins so."""
    fitting = [name for name in there if name == language or name.partition("_")[0] == language]
    if len(fitting) != 1:
        raise CorpusError(
            f"{source}: {len(fitting)} folders are for the language {language!r}; it has {', '.join(there)}"
        )
    return fitting[0]


def code(folder: str) -> str:
    """``de_de`` -> ``de``; Mandarin is ``zh``."""
    short = folder.partition("_")[0]
    return "zh" if short == "cmn" else short


def _rows(path: Path) -> Iterator[tuple[str, str, str, str | None, float]]:
    """Sentence, file, text, gender, share of the file read."""
    for number, line, fraction in read_lines(path):
        cells = line.split("\t")
        if len(cells) < LEAST_COLUMNS or not cells[0].isdecimal():
            raise CorpusError(f"{path}:{number}: expected id, file, text, ... with tabs between, without a head")
        yield cells[0], cells[1], clean(cells[2]), cells[6].lower() if len(cells) > 6 else None, fraction


def _read_split(folder: Path, split: str, translations: dict[str, dict[str, str]], options: Options) -> Iterator[Item]:
    audio = next((path for path in (folder / "audio" / split, folder / split) if path.is_dir()), None)
    if audio is None:
        raise expected(CORPORA["fleurs"], folder / "audio" / split, "there is no such folder; unpack its archive there")
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
