"""Common Voice (Ardila et al., LREC 2020): a folder for each locale, tab-separated files, MP3 clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    read_tsv,
)

SPLITS = ("train", "dev", "test", "validated", "other", "invalidated")
USUAL = SPLITS[:3]
"""The others overlap with these, or hold clips that listeners did not confirm."""
KEPT = ("gender", "age", "accents", "accent")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Manifests ``LOCALE.SPLIT``. ``source``: the folder of a locale, or of several."""
    single = (source / "clips").is_dir()
    folders = [source] if single else sorted(path.parent for path in source.glob("*/clips"))
    if not folders:
        raise expected(CORPORA["common-voice"], source, "has no folder with clips in it")
    if options.language and not single:
        names = chosen((options.language,), [folder.name for folder in folders], "locale", source)
        folders = [source / name for name in names]
    parts = []
    for folder in folders:
        there = [split for split in SPLITS if (folder / f"{split}.tsv").is_file()]
        usual = [split for split in USUAL if split in there]
        if not there:
            raise expected(CORPORA["common-voice"], folder, "has no train.tsv, dev.tsv, test.tsv")
        parts += [
            (folder, split) for split in (chosen(options.splits, there, "split", folder) if options.splits else usual)
        ]
    for done, (folder, split) in enumerate(parts):
        for row, fraction in read_tsv(folder / f"{split}.tsv", "path", "sentence", "client_id"):
            sample = clip(folder, row, options.language if single else folder.name)
            if sample.text:
                yield Recording(((f"{sample.language}.{split}", asr_line(sample, options)),))
            else:
                yield Dropped(sample.id, "no transcript")
            yield Reached((done + fraction) / len(parts))


def clip(folder: Path, row: Mapping[str, str], language: str | None) -> Sample:
    """The recording of a row. The language is the locale of the row or the folder where the user names none."""
    name = row["path"] if row["path"].endswith(".mp3") else f"{row['path']}.mp3"
    return Sample(
        id=name.removesuffix(".mp3"),
        audio=folder / "clips" / name,
        text=clean(row["sentence"]) or None,
        language=language or row.get("locale") or folder.name,
        speaker=row["client_id"],
        extra={key: row[key] for key in KEPT if row.get(key)},
    )
