"""Read MuST-C v1 (Di Gangi et al., NAACL 2019): TED talks with translations to 8 languages.

The segments of a split are in ``SPLIT.yaml``, and there is one text file per language.
Each language pair has its own copy of the talks, with slightly different segments. Transcripts (stage 1) therefore come
from one pair only: the first of ``targets``, or the first pair in the folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.items import (
    BAD_ROW,
    Dropped,
    Item,
    Options,
    Reached,
    Recording,
    asr_line,
    bad_row,
    clean,
    label,
    layout_error,
    read_lines,
    select,
    st_line,
    within_part,
)
from ossicle.errors import CorpusError

try:  # ten times as fast; not every build of PyYAML has it
    from yaml import CSafeLoader as Loader
except ImportError:
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

TARGETS = ("de", "es", "fr", "it", "nl", "pt", "ro", "ru")
SPLITS = ("train", "dev", "tst-COMMON", "tst-HE")
FIELDS = ("duration", "offset", "speaker_id", "wav")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``train`` (asr), ``train.st-de``, ...

    ``source`` is the folder that contains en-de, en-es, ..., or one of these folders.
    """
    only = source.name.removeprefix("en-")
    if only in TARGETS and (source / "data").is_dir():
        pairs, source = [only], source.parent
    else:
        pairs = [target for target in TARGETS if (source / f"en-{target}" / "data").is_dir()]
    if not pairs:
        raise layout_error(CORPORA["mustc"], source, "has no en-de/data, en-es/data, ...")
    targets = select(options.targets, pairs, "language pair en to", source)
    available = [split for split in SPLITS if any(_folder(source, target, split).is_dir() for target in targets)]
    splits = select(options.splits, available, "split", source)
    parts = [(target, split) for target in targets for split in splits if _folder(source, target, split).is_dir()]
    for done, (target, split) in enumerate(parts):
        names = {"st": f"{split}.st-{target}"} | ({"asr": split} if target == targets[0] else {})
        wanted = {task: name for task, name in names.items() if options.wants(task)}
        for item in _read_split(_folder(source, target, split), target, wanted, options):
            yield within_part(item, done, len(parts))


def _folder(source: Path, target: str, split: str) -> Path:
    return source / f"en-{target}" / "data" / split


def _read_split(folder: Path, target: str, names: dict[str, str], options: Options) -> Iterator[Item]:
    index, texts = folder / "txt" / f"{folder.name}.yaml", folder / "txt" / folder.name
    english, foreign = (texts.with_name(f"{folder.name}.{language}") for language in ("en", target))
    for path in (index, english, foreign):
        if not path.is_file():
            raise layout_error(CORPORA["mustc"], path, "there is no such file")
    counts: Counter[str] = Counter()
    for rows in zip_longest(read_lines(index), read_lines(english), read_lines(foreign)):
        if None in rows:
            number = next(row[0] for row in rows if row is not None)
            raise CorpusError(
                f"{index}:{number}: {english.name}, {foreign.name} and this file differ in length; download them again"
            )
        (number, entry, fraction), (_, text, _), (_, translation, _) = rows
        where = f"{index}:{number}"
        try:
            sample = _sample(_segment(entry, where), text, folder / "wav", counts, where)
        except BAD_ROW as error:
            yield bad_row(where, error)
        else:
            yield _item(sample, target, translation, names, options)
        yield Reached(fraction)


def _sample(segment: dict[str, Any], text: str, folder: Path, counts: Counter[str], where: str) -> Sample:
    talk = Path(segment["wav"]).stem
    counts[talk] += 1
    return Sample(
        id=f"{talk}-{counts[talk]:04d}",
        audio=folder / segment["wav"],
        text=text,
        language="en",
        speaker=label(segment["speaker_id"], "speaker_id"),
        start_s=segment["offset"],
        end_s=round(segment["offset"] + segment["duration"], 6),
        source=where,
    )


def _item(sample: Sample, target: str, translation: str, names: dict[str, str], options: Options) -> Item:
    if sample.end_s is None or sample.end_s <= sample.start_s:
        return Dropped(sample.id, "empty segment")
    if not clean(sample.text):
        return Dropped(sample.id, "no transcript")
    lines = [(names["asr"], asr_line(sample, options))] if "asr" in names else []
    if "st" in names and clean(translation):
        lines.append((names["st"], st_line(sample, target, translation, options)))
    return Recording(tuple(lines)) if lines else Dropped(sample.id, "no translation")


def _segment(entry: str, where: str) -> dict[str, Any]:
    """Return a segment from its line in the index.

    A line is ``- {duration: 3.5, offset: 16.08, rW: 9, uW: 0, speaker_id: spk.7, wav: ted_7.wav}``.
    """
    try:
        found = yaml.load(entry, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: is not YAML; download the file again") from error
    if not (isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict)):
        raise CorpusError(
            f"{where}: is not a segment; expected - {{duration: .., offset: .., speaker_id: .., wav: ..}}"
        )
    missing = [name for name in FIELDS if name not in found[0]]
    if missing:
        raise CorpusError(f"{where}: has no {missing[0]!r}; a segment has {', '.join(FIELDS)}")
    try:
        seconds = {name: float(found[0][name]) for name in ("duration", "offset")}
    except (TypeError, ValueError, OverflowError) as error:
        raise CorpusError(f"{where}: {error}; write duration and offset in seconds") from error
    return found[0] | seconds
