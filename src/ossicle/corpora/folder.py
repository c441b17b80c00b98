"""A folder of recordings, each beside a text file of the same name."""

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
    expected,
    files_below,
)
from ossicle.errors import CorpusError


def read(source: Path, options: Options) -> Iterator[Item]:
    """The manifest ``speech``; an utterance's id is its path below the folder without the suffix."""
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
        raise expected(CORPORA["folder"], source, "holds no audio files")


def _item(name: str, path: Path, text_path: Path, options: Options) -> Item:
    try:
        text = clean(text_path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{text_path}: is not UTF-8 text ({error.reason})") from error
    if not text:
        return Dropped(name, "no transcript", str(text_path))
    sample = Sample(id=name, audio=path, text=text, language=options.language)
    return Recording((("speech", asr_line(sample, options)),))
