"""Speaker descriptions of Multilingual LibriSpeech (Lyth and King, 2024): seven attributes as one text, task ``meta``.

The data set of the hub holds no audio. Either each row has an audio column (the official code joined them so), or
``audio`` is the folder of the parquet files of mls_eng: both list the same utterances, found by where in which
recording of LibriVox they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora import DESCRIPTION_ATTRIBUTES as ATTRIBUTES
from ossicle.corpora.disk import DiskDict
from ossicle.corpora.items import Dropped, Item, Options, Reached, Recording, chosen, clean, expected
from ossicle.corpora.tables import audio_of, columns_of, parquet_files, rows
from ossicle.errors import CorpusError

INSTRUCTION = (
    "Describe the recording: speaking rate, gender of the speaker, noise, reverberation, monotony, "
    "signal-to-distortion noise and perceived quality."
)
PLACE = ("original_path", "begin_time")
"""What an utterance is known by in both data sets."""
TEXTS = ("transcript", "original_text", "text")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Manifests ``SPLIT.meta``."""
    files = parquet_files(source)
    if not files:
        raise expected(CORPORA["mls-descriptions"], source, "holds no .parquet file")
    described = {split: _described(paths[0]) for split, paths in files.items()}
    splits = chosen(options.splits, list(files), "split", source)
    for done, split in enumerate(splits):
        for item in _read_split(files[split], split, described[split], options):
            yield Reached((done + item.fraction) / len(splits)) if isinstance(item, Reached) else item


def _described(path: Path) -> list[str]:
    names = columns_of(path)
    missing = [name for name in ATTRIBUTES if name not in names]
    if missing:
        raise expected(CORPORA["mls-descriptions"], path, f"has no column {missing[0]!r}")
    return names


def _read_split(files: list[Path], split: str, names: list[str], options: Options) -> Iterator[Item]:
    audio = options.columns.get("audio", "audio")
    if audio in names and options.audio is None:
        wanted = [audio, *ATTRIBUTES, *(name for name in (*TEXTS, "speaker_id", "id") if name in names)]
        for number, (row, fraction) in enumerate(rows(files, wanted)):
            yield _item(row, row, audio, split, number, files[0].parent)
            yield Reached(fraction)
        return
    if options.audio is None:
        raise expected(CORPORA["mls-descriptions"], files[0], "has no audio column and there is no --audio")
    yield from _joined(files, split, Path(options.audio))


def _joined(files: list[Path], split: str, folder: Path) -> Iterator[Item]:
    """Descriptions into an on-disk table first, then through the audio once."""
    speech = parquet_files(folder)
    if split not in speech:
        raise CorpusError(f"{folder}: has no parquet files of {split!r}; it has {', '.join(speech) or 'none'}")
    described = DiskDict()
    for row, fraction in rows(files, [*PLACE, *ATTRIBUTES]):
        described.add(_place(row), "\n".join(clean(str(row[name] or "")) for name in ATTRIBUTES))
        yield Reached(fraction / 10)
    names = columns_of(speech[split][0])
    wanted = ["audio", *PLACE, *(name for name in (*TEXTS, "speaker_id", "id") if name in names)]
    for number, (row, fraction) in enumerate(rows(speech[split], wanted)):
        found = described.get(_place(row))
        if found is None:
            yield Dropped(f"{split}-{number:08d}", "no description", _place(row))
        else:
            about = dict(zip(ATTRIBUTES, found.split("\n"), strict=True))
            yield _item(about, row, "audio", split, number, speech[split][0].parent)
        yield Reached(0.1 + 0.9 * fraction)


def _place(row: Mapping[str, Any]) -> str:
    return f"{row[PLACE[0]]} {float(row[PLACE[1]]):.3f}"


def _item(about: Mapping[str, Any], row: Mapping[str, Any], audio: str, split: str, number: int, folder: Path) -> Item:
    """The line of an utterance: ``about`` has its attributes, ``row`` its speech in the column ``audio``."""
    values = [clean(str(about[attribute] or "")) for attribute in ATTRIBUTES]
    name = str(row.get("id") or f"{split}-{number:08d}")
    if not all(values):
        return Dropped(name, "attribute missing", ATTRIBUTES[values.index("")])
    found = audio_of(row[audio], name, split, folder)
    if isinstance(found, Dropped):
        return found
    path, make = found
    text = next((row[column] for column in TEXTS if isinstance(row.get(column), str)), None)
    sample = Sample(
        id=name,
        audio=path,
        text=clean(text) or None,
        language="en",
        speaker=None if row.get("speaker_id") is None else str(row["speaker_id"]),
        task="meta",
        instruction=INSTRUCTION,
        answers=(", ".join(values),),
    )
    return Recording(((f"{split}.meta", sample),), make)
