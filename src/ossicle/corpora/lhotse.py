"""Read Lhotse cuts as plain JSON. Each supervision of a `MonoCut` becomes an utterance."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.items import (
    Dropped,
    Item,
    Options,
    Reached,
    Recording,
    asr_line,
    clean,
    layout_error,
    resolve_audio,
)
from ossicle.errors import CorpusError


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of one manifest per file of cuts."""
    names = ("*.jsonl", "*.jsonl.gz")
    files = [source] if source.is_file() else sorted(path for name in names for path in source.glob(name))
    if not files:
        raise layout_error(CORPORA["lhotse"], source, "contains no .jsonl or .jsonl.gz file")
    for done, path in enumerate(files):
        manifest = path.name.removesuffix(".gz").removesuffix(".jsonl")
        for number, line, fraction in _lines(path):
            where = f"{path}:{number}"
            try:
                cut = json.loads(line)
                yield from _cut(cut, path.parent, manifest, options)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{where}: is not JSON ({error}); expected {CORPORA['lhotse'].layout}") from error
            except (KeyError, TypeError) as error:
                raise CorpusError(f"{where}: is not a cut ({error!r}); write the cuts with CutSet.to_file") from error
            yield Reached((done + fraction) / len(files))


def _lines(path: Path) -> Iterator[tuple[int, str, float]]:
    """Yield number, text and the share of the file that is read, for each line of a plain or compressed file."""
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.decode(), min(raw.tell() / size, 1.0)
        except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: is damaged ({error}); download it again") from error


def _cut(cut: dict[str, Any], folder: Path, manifest: str, options: Options) -> Iterator[Item]:
    name, kind = cut["id"], cut.get("type", "MonoCut")
    if kind != "MonoCut":
        yield Dropped(name, f"{kind}, not a MonoCut")
        return
    recording = cut.get("recording")
    if recording is None:
        yield Dropped(name, "cut without a recording", "it has features only; Ossicle needs the audio")
        return
    if problem := _problem(recording):
        yield Dropped(name, problem)
        return
    audio = resolve_audio(folder, recording["sources"][0]["source"])
    supervisions = cut.get("supervisions") or []
    if not supervisions:
        yield Dropped(name, "cut without a supervision")
    for supervision in supervisions:
        yield _supervision(supervision, cut, audio, manifest, options)


def _problem(recording: dict[str, Any]) -> str:
    """Return why the recording cannot be used, or an empty string."""
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] != "file":
        return f"recording from {', '.join(source['type'] for source in sources)}, not from one file"
    if len(sources[0]["channels"]) != 1:
        return "recording with several channels"  # a cut has one channel, and Ossicle would average all
    if recording.get("transforms"):
        return "recording with transforms"  # such as speed, which the file does not contain
    return ""


def _supervision(
    supervision: dict[str, Any], cut: dict[str, Any], audio: Path, manifest: str, options: Options
) -> Item:
    """Return the part of a supervision that is inside its cut. Its times are relative to the start of the cut."""
    start_s = cut["start"] + max(supervision["start"], 0.0)
    end_s = cut["start"] + min(supervision["start"] + supervision["duration"], cut["duration"])
    name = supervision["id"]
    if not clean(supervision.get("text")):
        return Dropped(name, "no transcript")
    if end_s <= start_s:
        return Dropped(name, "empty segment")
    sample = Sample(
        id=name,
        audio=audio,
        text=supervision["text"],
        language=options.language or supervision.get("language"),
        speaker=supervision.get("speaker"),
        start_s=round(start_s, 6),
        end_s=round(end_s, 6),
    )
    return Recording(((manifest, asr_line(sample, options)),))
