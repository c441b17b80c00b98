"""Read GigaSpeech (Chen et al., Interspeech 2021): segments of long recordings, listed in one large JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.disk import read_json_array
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
    select,
)

SUBSETS = ("XS", "S", "M", "L", "XL", "DEV", "TEST")
DEFAULT_SUBSETS = ("M", "DEV", "TEST")
"""The paper adds subset M (1000 hours) to MuST-C."""
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = frozenset(("<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>"))
TAG = re.compile(r"<[A-Z]+>")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of one manifest per subset. A larger training subset contains the smaller ones."""
    index = source / "GigaSpeech.json"
    if not index.is_file():
        raise layout_error(CORPORA["gigaspeech"], index, "there is no such file")
    subsets = select(options.subsets, list(SUBSETS), "subset", source) if options.subsets else list(DEFAULT_SUBSETS)
    for number, (audio, fraction) in enumerate(read_json_array(index, "audios"), start=1):
        yield Reached(fraction)
        where = f"{index}: recording {number}"
        if not isinstance(audio, dict) or not isinstance(audio.get("segments"), list):
            yield bad_row(where, "is not an object with segments; download the file again", f"recording-{number}")
            continue
        where += f" ({audio.get('aid')})"
        for segment in audio["segments"]:
            try:
                item = _segment(segment, audio, source, subsets, options)
            except BAD_ROW as error:
                item = bad_row(where, error, f"recording-{number}")
            if item is not None:
                yield item


def _segment(
    segment: dict[str, Any], audio: dict[str, Any], source: Path, subsets: list[str], options: Options
) -> Item | None:
    """Return the lines of a segment, or None if no subset contains it."""
    names = {name.strip("{}") for name in segment["subsets"]}
    manifests = [name for name in subsets if name in names]
    if not manifests:
        return None
    text, speaker = plain_text(segment["text_tn"]), label(segment.get("speaker"), "speaker")
    if isinstance(text, Dropped):
        return Dropped(str(segment["sid"]), text.reason, text.detail)
    sample = Sample(
        id=segment["sid"],
        audio=source / audio["path"],
        text=text,
        language="en",
        speaker=None if speaker == "N/A" else speaker,
        start_s=float(segment["begin_time"]),
        end_s=float(segment["end_time"]),
        extra={"domain": audio["source"]} if "source" in audio else {},
    )
    return Recording(tuple((name, asr_line(sample, options)) for name in manifests))


def plain_text(tagged: str) -> str | Dropped:
    """Return the text with punctuation marks: ``AND <COMMA> SO ON <PERIOD>`` becomes ``AND, SO ON.``.

    Return `Dropped` without an id if no speech is left, or if a tag is unknown.
    """
    words: list[str] = []
    for token in tagged.split():
        if token in PUNCTUATION and words:
            words[-1] += PUNCTUATION[token]
        elif token in NO_SPEECH or token in PUNCTUATION:
            continue
        elif TAG.fullmatch(token):
            return Dropped("", "unknown tag", token)
        else:
            words.append(token)
    text = clean(" ".join(words))
    return text or Dropped("", "no speech", tagged)
