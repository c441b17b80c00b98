"""Read Common Voice (Ardila et al., LREC 2020): one folder per locale with tab-separated tables and MP3 clips."""

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
    Row,
    asr_line,
    bad_row,
    clean,
    layout_error,
    read_tsv,
    select,
)
from ossicle.corpora.paths import AUDIO_SUFFIXES

SPLITS = ("train", "dev", "test", "validated", "other", "invalidated")
DEFAULT_SPLITS = SPLITS[:3]
"""The other splits overlap with these, or contain clips that listeners did not confirm."""
EXTRA_FIELDS = ("gender", "age", "accents", "accent")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``LOCALE.SPLIT``. ``source`` is the folder of one locale, or of several."""
    single = (source / "clips").is_dir()
    folders = [source] if single else sorted(path.parent for path in source.glob("*/clips"))
    if not folders:
        raise layout_error(CORPORA["common-voice"], source, "contains no folder with clips")
    if options.language and not single:
        names = select((options.language,), [folder.name for folder in folders], "locale", source)
        folders = [source / name for name in names]
    parts = []
    for folder in folders:
        available = [split for split in SPLITS if (folder / f"{split}.tsv").is_file()]
        usual = [split for split in DEFAULT_SPLITS if split in available]
        if not available:
            raise layout_error(CORPORA["common-voice"], folder, "has no train.tsv, dev.tsv, test.tsv")
        parts += [
            (folder, split)
            for split in (select(options.splits, available, "split", folder) if options.splits else usual)
        ]
    for done, (folder, split) in enumerate(parts):
        for row, fraction in read_tsv(folder / f"{split}.tsv", "path", "sentence", "client_id"):
            sample = row if isinstance(row, Dropped) else clip(folder, row, options.language if single else folder.name)
            if isinstance(sample, Dropped):
                yield sample
            elif sample.text:
                yield Recording(((f"{sample.language}.{split}", asr_line(sample, options)),))
            else:
                yield Dropped(sample.id, "no transcript")
            yield Reached((done + fraction) / len(parts))


def clip(folder: Path, row: Row, language: str | None) -> Sample | Dropped:
    """Return the recording of a row. Without ``language``, its language is the locale of the row or of the folder."""
    cells = row.cells
    if not cells["path"].strip():
        return bad_row(row.where, "names no clip; complete the column path")
    name = cells["path"] if cells["path"].lower().endswith(AUDIO_SUFFIXES) else f"{cells['path']}.mp3"
    return Sample(
        id=name.removesuffix(".mp3"),
        audio=folder / "clips" / name,
        text=clean(cells["sentence"]) or None,
        language=language or cells.get("locale") or folder.name,
        speaker=cells["client_id"] or None,
        extra={key: cells[key] for key in EXTRA_FIELDS if cells.get(key)},
        source=row.where,
    )
