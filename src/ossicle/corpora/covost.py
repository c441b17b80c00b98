"""Read CoVoST 2 (Wang et al., 2020): translations of the sentences of Common Voice 4, from and to English.

``covost_v2.SOURCE_TARGET.tsv`` contains path, translation and split. CoVoST's own script divides it into one file per
split. Sentence and speaker come from ``validated.tsv``. Each clip yields one recording with all its translations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.common_voice import clip
from ossicle.corpora.disk import DiskDict
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
    read_tsv,
    select,
    st_line,
)
from ossicle.errors import CorpusError

SPLITS = ("train", "dev", "test")
NAME = re.compile(r"covost_v2\.([\w-]+)_([\w-]+?)(?:\.(train|dev|test))?\.tsv")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``LANGUAGE.SPLIT`` (asr) and ``LANGUAGE.SPLIT.st-TARGET``."""
    if not (source / "clips").is_dir():
        raise layout_error(CORPORA["covost"], source, "has no folder clips")
    pairs = sorted({match.group(1, 2) for path in source.iterdir() if (match := NAME.fullmatch(path.name))})
    languages = sorted({spoken for spoken, _ in pairs})
    if not pairs:
        raise layout_error(CORPORA["covost"], source, "has no file covost_v2.en_de.tsv, ...")
    language = select((options.language,) if options.language else (), languages, "language", source)[0]
    if len(languages) > 1 and not options.language:
        raise CorpusError(f"{source}: has translations from {', '.join(languages)}; select one with --language")
    targets = select(options.targets, [target for spoken, target in pairs if spoken == language], "target", source)
    splits = select(options.splits, list(SPLITS), "split", source)
    sentences = source / "validated.tsv"
    if not sentences.is_file():
        raise layout_error(CORPORA["covost"], sentences, "there is no such file")
    translations = DiskDict()
    tables = [table for target in targets for table in _tables(source, language, target)]
    for done, (path, target, split) in enumerate(tables):
        for item in _store(path, target, split, translations):
            yield Reached((done + item.fraction) / len(tables) / 2) if isinstance(item, Reached) else item
    for row, fraction in read_tsv(sentences, "path", "sentence", "client_id", escaped=True):
        sample = row if isinstance(row, Dropped) else clip(source, row, language)
        if isinstance(sample, Dropped):
            yield sample
        else:
            found = {target: translations.take(f"{target}\n{sample.id}") for target in targets}
            yield from _clip(sample, found, splits, options)
        yield Reached(0.5 + fraction / 2)
    for key, entry in translations.items():
        target, _, name = key.partition("\n")
        if entry.partition("\n")[0] in splits:
            yield Dropped(f"{name}-{target}", "no sentence in validated.tsv", str(sentences))


def _tables(source: Path, language: str, target: str) -> list[tuple[Path, str, str | None]]:
    """Return the tables with their target and split. The split is None in a table with all splits."""
    whole = source / f"covost_v2.{language}_{target}.tsv"
    if whole.is_file():
        return [(whole, target, None)]
    parts = ((whole.with_suffix(f".{split}.tsv"), split) for split in SPLITS)
    return [(path, target, split) for path, split in parts if path.is_file()]


def _store(path: Path, target: str, split: str | None, translations: DiskDict) -> Iterator[Dropped | Reached]:
    """Store ``SPLIT<newline>translation`` by target and clip, and yield the rows that are left out.

    As in the script of the corpus, a backslash escapes the next character, and ``train_covost`` belongs to train.
    """
    for row, fraction in read_tsv(path, "path", "translation", *(() if split else ("split",)), escaped=True):
        if isinstance(row, Dropped):
            yield row
        else:
            clip_id = row.cells["path"].removesuffix(".mp3")
            name = split or row.cells["split"].removesuffix("_covost")
            text = clean(row.cells["translation"])
            if name not in SPLITS:
                yield bad_row(row.where, f"has the unknown split {name!r}; expected {', '.join(SPLITS)}")
            elif not translations.add(f"{target}\n{clip_id}", f"{name}\n{text}"):
                yield bad_row(row.where, f"translates the clip {clip_id} again; the first translation is kept")
        yield Reached(fraction)


def _clip(sample: Sample, found: dict[str, str | None], splits: list[str], options: Options) -> Iterator[Item]:
    """Yield a recording with one line per target. The asr line goes to the split of the first target."""
    lines: list[tuple[str, Sample]] = []
    for target, entry in found.items():
        split, _, translation = (entry or "").partition("\n")
        if split not in splits:
            continue
        if options.wants("asr") and sample.text and not lines:
            lines.append((f"{sample.language}.{split}", asr_line(sample, options)))
        if options.wants("st") and translation:
            lines.append((f"{sample.language}.{split}.st-{target}", st_line(sample, target, translation, options)))
        elif options.wants("st"):
            yield Dropped(f"{sample.id}-{target}", "no translation")
        elif not sample.text:
            yield Dropped(sample.id, "no transcript")
    if lines:
        yield Recording(tuple(lines))
