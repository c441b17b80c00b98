"""Read a folder of recordings with a text file of the same name beside each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.items import OTHER_FILE, Dropped, Item, Options, Reached, Recording, asr_line, clean, layout_error
from ossicle.corpora.paths import AUDIO_SUFFIXES, files_below

OTHER_AUDIO_SUFFIXES = (
    ".3gp", ".aac", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".au", ".avi", ".caf", ".m4a", ".m4b", ".mka",
    ".mkv", ".mov", ".mp2", ".mp4", ".mpga", ".oga", ".ra", ".rf64", ".snd", ".spx", ".w64", ".webm", ".wma", ".wv",
)  # fmt: skip
"""Suffixes of other audio and video files. Whether one can be read is decided when it is opened."""


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifest ``speech``. The id is the path below ``source`` without the suffix.

    Every other file is listed as left out, so that no recording is missed because of its name.
    """
    found = False
    for path, fraction in files_below(source):
        suffix = path.suffix.lower()
        if suffix in AUDIO_SUFFIXES or suffix in OTHER_AUDIO_SUFFIXES:
            found = True
            yield _item(path, path.relative_to(source), options)
        elif suffix != ".txt":
            problem = f"has the unknown suffix {path.suffix!r}" if path.suffix else "has no suffix"
            detail = f"{path}: {problem}; give a recording a suffix such as .wav"
            yield Dropped(path.relative_to(source).as_posix(), OTHER_FILE, detail)
        yield Reached(fraction)
    if not found:
        raise layout_error(CORPORA["folder"], source, "contains no audio files")


def _item(path: Path, place: Path, options: Options) -> Item:
    # The stem is the id of a usual file; a copy in another format must not take it.
    name = place.with_suffix("").as_posix() if path.suffix.lower() in AUDIO_SUFFIXES else place.as_posix()
    text_path = next((p for p in (path.with_suffix(s) for s in (".txt", ".TXT", ".Txt")) if p.is_file()), None)
    if text_path is None:
        return Dropped(name, "no .txt file", str(path.with_suffix(".txt")))
    try:
        text = clean(text_path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        problem = f"{text_path}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        return Dropped(name, "transcript is not UTF-8", problem)
    except OSError as error:
        return Dropped(name, "transcript cannot be read", f"{text_path}: {error.strerror}")
    if not text:
        return Dropped(name, "no transcript", str(text_path))
    sample = Sample(id=name, audio=path, text=text, language=options.language)
    return Recording((("speech", asr_line(sample, options)),))
