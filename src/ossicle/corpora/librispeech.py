"""Read LibriSpeech (Panayotov et al., ICASSP 2015): read English speech with one transcript file per chapter."""

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
    bad_row,
    layout_error,
    read_lines,
    select,
)
from ossicle.corpora.paths import find_audio, subfolder

FULL = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other")
MINI = ("train-clean-5", "dev-clean-2")
"""The splits of Mini LibriSpeech, which has the same layout."""
SPLITS = FULL + MINI


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of one manifest per split."""
    source = subfolder(source, "LibriSpeech") if (source / "LibriSpeech").is_dir() else source
    available = [split for split in SPLITS if (source / split).is_dir()]
    if not available:
        raise layout_error(CORPORA["librispeech"], source, f"contains none of the folders {', '.join(SPLITS)}")
    genders = _genders(source / "SPEAKERS.TXT")
    splits = select(options.splits, available, "split", source)
    for done, split in enumerate(splits):
        chapters = sorted(path for path in (source / split).glob("*/*") if path.is_dir())
        if not chapters:
            raise layout_error(CORPORA["librispeech"], source / split, "contains no chapters")
        for number, chapter in enumerate(chapters, start=1):
            yield from _chapter(chapter, split, genders, options)
            yield Reached((done + number / len(chapters)) / len(splits))


def _chapter(folder: Path, split: str, genders: dict[str, str], options: Options) -> Iterator[Item]:
    speaker = folder.parent.name
    transcripts = folder / f"{speaker}-{folder.name}.trans.txt"
    if not transcripts.is_file():
        raise layout_error(CORPORA["librispeech"], transcripts, "there is no such file")
    for number, line, _ in read_lines(transcripts):
        name, _, text = line.partition(" ")
        if not name.startswith(f"{speaker}-{folder.name}-"):
            problem = f"begins with {name[:60]!r}; expected an id such as {speaker}-{folder.name}-0000"
            yield bad_row(f"{transcripts}:{number}", problem)
            continue
        if not text.strip():
            yield Dropped(name, "no transcript")
            continue
        sample = Sample(
            id=name,
            audio=find_audio(folder / name) or folder / f"{name}.flac",
            text=text,
            language="en",
            speaker=speaker,
            extra={"gender": genders[speaker]} if speaker in genders else {},
            source=f"{transcripts}:{number}",
        )
        yield Recording(((split, asr_line(sample, options)),))


def _genders(path: Path) -> dict[str, str]:
    """Return the gender of each speaker, from lines such as ``14 | F | train-clean-360 | 25.03 | Kristin LeMoine``."""
    if not path.is_file():
        return {}
    rows = (line.split("|") for _, line, _ in read_lines(path) if not line.startswith(";"))
    names = {"F": "female", "M": "male"}
    return {row[0].strip(): names[row[1].strip()] for row in rows if len(row) > 1 and row[1].strip() in names}
