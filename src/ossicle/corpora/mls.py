"""Read Multilingual LibriSpeech (Pratap et al., Interspeech 2020): one folder per language."""

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
    clean,
    layout_error,
    read_lines,
    select,
    within_part,
)
from ossicle.corpora.paths import find_audio

LANGUAGES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}
SPLITS = ("train", "dev", "test")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``de.train``, ...

    ``source`` is a folder such as mls_german or mls_german_opus, or the folder that contains these.
    """
    above = source if _language(source) is None else source.parent
    folders = {
        language: path
        for path in ([source] if above != source else sorted(source.iterdir()))
        if (language := _language(path)) and path.is_dir()
    }
    if not folders:
        raise layout_error(CORPORA["mls"], source, "has no folder mls_german, mls_french, ...")
    languages = select((options.language,) if options.language else (), list(folders), "language", source)
    parts = []
    for language in languages:
        available = [split for split in SPLITS if (folders[language] / split).is_dir()]
        parts += [(language, split) for split in select(options.splits, available, "split", folders[language])]
    if not parts:
        raise layout_error(CORPORA["mls"], source, "has no folder train, dev, test")
    for done, (language, split) in enumerate(parts):
        for item in _read_split(folders[language] / split, language, options):
            yield within_part(item, done, len(parts))


def _language(folder: Path) -> str | None:
    name = folder.name.removeprefix("mls_").removesuffix("_opus")
    return LANGUAGES.get(name) if folder.name.startswith("mls_") else None


def _read_split(folder: Path, language: str, options: Options) -> Iterator[Item]:
    transcripts = folder / "transcripts.txt"
    if not transcripts.is_file():
        raise layout_error(CORPORA["mls"], transcripts, "there is no such file")
    for number, line, fraction in read_lines(transcripts):
        name, tab, text = line.partition("\t")
        parts = name.split("_")
        if not tab or len(parts) != 3:
            problem = "is invalid; expected SPEAKER_BOOK_NUMBER, a tab and the text"
            yield bad_row(f"{transcripts}:{number}", problem)
        elif clean(text):
            where = f"{transcripts}:{number}"
            stem = folder / "audio" / parts[0] / parts[1] / name
            audio = find_audio(stem) or stem.with_suffix(".flac")
            sample = Sample(id=name, audio=audio, text=text, language=language, speaker=parts[0], source=where)
            yield Recording(((f"{language}.{folder.name}", asr_line(sample, options)),))
        else:
            yield Dropped(name, "no transcript")
        yield Reached(fraction)
