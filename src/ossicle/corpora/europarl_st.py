"""Read Europarl-ST (Iranzo-Sánchez et al., ICASSP 2020): speeches in the European Parliament in 9 languages.

The audio is M4A, which libsndfile does not read. It must be converted once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
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
    read_lines,
    select,
    st_line,
    within_part,
)
from ossicle.corpora.paths import find_audio
from ossicle.errors import CorpusError

SPLITS = ("train", "dev", "test", "train-noisy")
DEFAULT_SPLITS = SPLITS[:3]
CONVERT = "for f in *.m4a; do ffmpeg -i $f -ac 1 -ar 16000 ${f%.m4a}.flac; done"


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``en.train`` (each segment once), ``en.train.st-de``, ..."""
    if (source / "audios").is_dir():
        languages, source = [source.name], source.parent
    else:
        languages = sorted(path.parent.name for path in source.glob("*/audios"))
    if not languages:
        raise layout_error(CORPORA["europarl-st"], source, "has no en/audios, de/audios, ...")
    parts = []
    for language in select((options.language,) if options.language else (), languages, "language", source):
        folder = source / language
        _check_audio(folder / "audios")
        pairs = sorted(path.parent.parent.name for path in folder.glob("*/train/segments.lst")) or sorted(
            path.name for path in folder.iterdir() if path.is_dir() and path.name != "audios"
        )
        for target in select(options.targets, pairs, "target", folder):
            available = [split for split in SPLITS if (folder / target / split / "segments.lst").is_file()]
            usual = [split for split in DEFAULT_SPLITS if split in available]
            splits = select(options.splits, available, "split", folder / target) if options.splits else usual
            parts += [(language, target, folder / target / split) for split in splits]
    if not parts:
        raise layout_error(CORPORA["europarl-st"], source, "has no segments.lst")
    seen = DiskDict()
    for done, (language, target, folder) in enumerate(parts):
        for item in _read_split(folder, language, target, seen, options):
            yield within_part(item, done, len(parts))


def _check_audio(folder: Path) -> None:
    suffixes = {path.suffix.lower() for path, _ in zip(folder.iterdir(), range(1000), strict=False)}
    if suffixes == {".m4a"}:
        raise CorpusError(
            f"{folder}: contains .m4a files, which cannot be read; convert them in that folder: {CONVERT}"
        )


def _read_split(folder: Path, language: str, target: str, seen: DiskDict, options: Options) -> Iterator[Item]:
    index, spoken, foreign = (folder / f"segments.{suffix}" for suffix in ("lst", language, target))
    for path in (spoken, foreign):
        if not path.is_file():
            raise layout_error(CORPORA["europarl-st"], path, "there is no such file")
    audios = folder.parent.parent / "audios"
    for rows in zip_longest(read_lines(index), read_lines(spoken), read_lines(foreign)):
        if None in rows:
            number = next(row[0] for row in rows if row is not None)
            raise CorpusError(
                f"{index}:{number}: {spoken.name}, {foreign.name} and this file differ in length; download them again"
            )
        (number, entry, fraction), (_, text, _), (_, translation, _) = rows
        sample = _sample(entry, text, language, audios, f"{index}:{number}")
        if isinstance(sample, Dropped):
            yield sample
        else:
            yield _item(sample, f"{language}.{folder.name}", target, translation, seen, options)
        yield Reached(fraction)


def _sample(entry: str, text: str, language: str, audios: Path, where: str) -> Sample | Dropped:
    """Return the segment of an entry ``NAME START END`` of the index."""
    try:
        name, start_s, end_s = (cast(cell) for cast, cell in zip((str, float, float), entry.split(), strict=True))
    except ValueError:
        problem = f"{entry[:60]!r} is invalid; expected the name of a recording, start and end in seconds"
        return bad_row(where, problem)
    return Sample(
        id=f"{name}-{start_s:.2f}-{end_s:.2f}",
        audio=find_audio(audios / name) or audios / f"{name}.flac",
        text=clean(text) or None,
        language=language,
        start_s=start_s,
        end_s=end_s,
        source=where,
    )


def _item(sample: Sample, name: str, target: str, translation: str, seen: DiskDict, options: Options) -> Item:
    if sample.text is None:
        return Dropped(sample.id, "no transcript")
    if sample.end_s is None or sample.end_s <= sample.start_s:
        return Dropped(sample.id, "empty segment")
    lines = []
    # Each pair of languages lists the segment. Its id has rounded times, which two segments may share.
    place = f"{name}\n{sample.audio}\n{sample.start_s!r}\n{sample.end_s!r}"
    if options.wants("asr") and seen.add(place):
        lines.append((name, asr_line(sample, options)))
    if options.wants("st") and clean(translation):
        lines.append((f"{name}.st-{target}", st_line(sample, target, translation, options)))
    return Recording(tuple(lines)) if lines else Dropped(sample.id, "no new line for these tasks")
