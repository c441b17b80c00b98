"""Read a folder of recordings with a text file of the same name beside each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.items import (
    AUDIO_SUFFIXES,
    Dropped,
    Item,
    Options,
    Reached,
    Recording,
    asr_line,
    clean,
    files_below,
    layout_error,
)
from ossicle.errors import CorpusError


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifest ``speech``. The id is the path below ``source`` without the suffix."""
    found = False
    for path, fraction in files_below(source, AUDIO_SUFFIXES):
        found = True
        name = path.relative_to(source).with_suffix("").as_posix()
        text_path = path.with_suffix(".txt")
        if not text_path.is_file():
            yield Dropped(name, "no .txt file", str(text_path))
        else:
            yield _item(name, path, text_path, options)
        yield Reached(fraction)
    if not found:
        raise layout_error(CORPORA["folder"], source, "contains no audio files")


def _item(name: str, path: Path, text_path: Path, options: Options) -> Item:
    try:
        text = clean(text_path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{text_path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    if not text:
        return Dropped(name, "no transcript", str(text_path))
    sample = Sample(id=name, audio=path, text=text, language=options.language)
    return Recording((("speech", asr_line(sample, options)),))
