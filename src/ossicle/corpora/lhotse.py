"""Read Lhotse cuts as plain JSON, also of a Lhotse Shar. Each supervision of a `MonoCut` becomes an utterance."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ossicle.addresses import list_files, open_binary
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
    parse_record,
)
from ossicle.corpora.paths import resolve_audio
from ossicle.corpora.shar import Recordings
from ossicle.errors import CorpusError

WINDOW_TOLERANCE_S = 0.01
"""Seconds by which a supervision may reach beyond its cut. Rounding causes such differences."""


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of one manifest per file of cuts."""
    files = list_files(source, ".jsonl", ".jsonl.gz")
    if not files:
        raise layout_error(CORPORA["lhotse"], source, "contains no .jsonl or .jsonl.gz file")
    for done, path in enumerate(files):
        manifest = re.sub(r"^(cuts)\.\d+$", r"\1", path.name.removesuffix(".gz").removesuffix(".jsonl"))
        recordings = Recordings(path)
        for number, line, fraction in _lines(path):
            yield from _cut(line, f"{path}:{number}", path.parent, manifest, options, recordings)
            yield Reached((done + fraction) / len(files))


def _lines(path: Path) -> Iterator[tuple[int, str, float]]:
    """Yield number, text and the share of the file that is read, for each line of a plain or compressed file."""
    with open_binary(path) as raw:
        size = max(raw.seek(0, 2), 1)
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.decode("utf-8", "surrogateescape"), min(raw.tell() / size, 1.0)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(f"{path}: is damaged ({error}); download it again") from error


def _cut(
    line: str, where: str, folder: Path, manifest: str, options: Options, recordings: Recordings
) -> Iterator[Item]:
    """Yield the supervisions of the cut on a line, or why it is left out."""
    try:
        cut = parse_record(line, where, CORPORA["lhotse"].layout)
        name = label(cut["id"], "id") or where
        if _is_in_shar(cut):
            recordings.fill(cut)
        problem, detail = _problem(cut)
        if problem:
            yield Dropped(name, problem, f"{where}: {detail}" if detail else "")
            return
        audio = resolve_audio(folder, cut["recording"]["sources"][0]["source"])
        supervisions = list(cut.get("supervisions") or [])
    except BAD_ROW as error:
        yield bad_row(where, f"is not a cut ({_text_of(error)}); write the cuts with CutSet.to_file")
        return
    if not supervisions:
        yield Dropped(name, "cut without a supervision")
    for supervision in supervisions:
        try:
            yield _supervision(supervision, cut, audio, manifest, where, options)
        except BAD_ROW as error:
            yield bad_row(where, f"has an invalid supervision ({_text_of(error)})", name)


def _is_in_shar(cut: dict[str, Any]) -> bool:
    sources = (cut.get("recording") or {}).get("sources") or [{}]
    return bool(sources[0].get("type") == "shar")


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, CorpusError) else repr(error)


def _problem(cut: dict[str, Any]) -> tuple[str, str]:
    """Return why the cut cannot be used, and a description; or two empty strings."""
    kind, recording = cut.get("type", "MonoCut"), cut.get("recording")
    if kind != "MonoCut":
        return f"{str(kind)[:40]}, not a MonoCut", ""
    if recording is None:
        return "cut without a recording", "it has features only; Ossicle needs the audio"
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] != "file":
        return f"recording from {', '.join(str(source['type'])[:40] for source in sources)}, not from one file", ""
    if len(sources[0]["channels"]) != 1:
        return "recording with several channels", ""  # a cut has one channel, and Ossicle would average all
    if recording.get("transforms"):
        return "recording with transforms", ""  # such as speed, which the file does not contain
    return "", ""


def _supervision(
    supervision: dict[str, Any], cut: dict[str, Any], audio: Path, manifest: str, where: str, options: Options
) -> Item:
    """Return a supervision, if its cut contains all of it. Its times are relative to the start of the cut."""
    begin_s, stop_s = float(supervision["start"]), float(supervision["start"]) + float(supervision["duration"])
    name = label(supervision["id"], "id")
    if not name:
        return bad_row(where, "has a supervision without an id; write the cuts with CutSet.to_file")
    text = clean(supervision.get("text"))
    if not text:
        return Dropped(name, "no transcript")
    if stop_s <= begin_s:
        return Dropped(name, "empty segment")
    if begin_s < -WINDOW_TOLERANCE_S or stop_s > cut["duration"] + WINDOW_TOLERANCE_S:
        detail = f"{where}: {begin_s:g}-{stop_s:g} s of a cut of {cut['duration']:g} s; its words are not all in it"
        return Dropped(name, "supervision that its cut divides", detail)
    start_s = cut["start"] + max(begin_s, 0.0)
    end_s = cut["start"] + min(stop_s, cut["duration"])
    sample = Sample(
        id=name,
        audio=audio,
        text=text,
        language=options.language or label(supervision.get("language"), "language"),
        speaker=label(supervision.get("speaker"), "speaker"),
        start_s=round(start_s, 6),
        end_s=round(end_s, 6),
        source=where,
    )
    return Recording(((manifest, asr_line(sample, options)),))
