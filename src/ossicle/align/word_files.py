"""Read word times from the files of other aligners: TextGrid (Praat, Montreal Forced Aligner) and CTM (Kaldi, NeMo)."""

from __future__ import annotations

import codecs
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from praatio.utilities.constants import INTERVAL_TIER
from praatio.utilities.errors import PraatioException
from praatio.utilities.textgrid_io import parseTextgridStr

from ossicle.data.words import WordTime
from ossicle.errors import WordFileError

SILENCES = frozenset(("", "<eps>", "sil", "sp", "<sil>", "<silence>", "!sil"))
"""Labels that aligners write for a pause."""

UNKNOWN = frozenset(("<unk>", "[unk]", "spn"))
"""Labels that aligners write for a word that is not in their dictionary."""

# praatio ignores the header, the stated numbers of tiers and intervals, and the sign of a time in the long format.
# A file that was cut off would lose words without an error. These patterns match the long and the short format.
_HEADER = re.compile(r'.*"ooTextFile( short)?"\s*\n.*"TextGrid"')
_TIER_COUNT = re.compile(r"<exists>\s*(?:size\s*=\s*)?(\d+)")
_INTERVAL_COUNT = re.compile(r'(?:intervals: size\s*=\s*|"IntervalTier"\s+"(?:[^"]|"")*"\s+\S+\s+\S+\s+)(\d+)')
_NEGATIVE_TIME = re.compile(r"^\s*xm(?:in|ax)\s*=\s*(-[\d.]*[1-9].*)$", re.MULTILINE)
_EXPORT_AGAIN = "export the file again"


def read_textgrid(path: Path, *, speaker: str | None = None) -> list[WordTime]:
    """Return the words of a TextGrid without the silences.

    The words are read from the interval tier "words". If there are several such tiers ("anna - words",
    "ben - words"), the tier of ``speaker`` is read. A single interval tier is read whatever its name.

    Raises:
        WordFileError: the file is invalid, or it is not clear which tier holds the words.
    """
    tiers = _interval_tiers(path)
    by_name = {name.lower(): words for name, words in tiers}
    preferred = [f"{speaker} - words".lower(), "words"] if speaker else ["words"]
    found = [by_name[name] for name in preferred if name in by_name]
    found = found or [words for name, words in by_name.items() if name.endswith(" - words")]
    found = found or list(by_name.values())
    if not found or (len(found) > 1 and not any(name in by_name for name in preferred)):
        names = ", ".join(repr(name) for name, _ in tiers) or "none"
        raise WordFileError(
            f'{path}: the tier of words is not clear (interval tiers: {names}); name the tier of words "words"'
        )
    return found[0]


def read_ctm(path: Path) -> dict[str, list[WordTime]]:
    """Return the words of each recording of a CTM file, in order of time.

    A line is ``recording channel start_s duration_s word [confidence]``. Raises `WordFileError` for an invalid line.
    """
    recordings: defaultdict[str, list[WordTime]] = defaultdict(list)
    for number, line in enumerate(_text(path).split("\n"), start=1):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        if len(fields) < 5:
            raise WordFileError(
                f"{path}:{number}: has {len(fields)} fields; write: recording channel start_s duration_s word"
            )
        recording, _, *times, word = fields[:5]
        start_s, duration_s = (_ctm_seconds(text, f"{path}:{number}") for text in times)
        _append(recordings[recording], word, start_s, start_s + duration_s)
    return {name: sorted(words, key=lambda word: word.start_s) for name, words in recordings.items()}


def _interval_tiers(path: Path) -> list[tuple[str, list[WordTime]]]:
    """Return the name and the words of each interval tier, in the order of the file."""
    text = _text(path)
    if not _HEADER.match(text):
        raise WordFileError(f'{path}:1: is not a TextGrid: it must begin with "ooTextFile" and "TextGrid"')
    if negative := _NEGATIVE_TIME.search(text):
        line = text.count("\n", 0, negative.start(1)) + 1
        raise WordFileError(f"{path}:{line}: the time {negative[1].strip()} is negative; correct it")
    try:
        # praatio drops the last label of a short TextGrid that does not end with a line break.
        tiers: list[dict[str, Any]] = parseTextgridStr(text + "\n", includeEmptyIntervals=True)["tiers"]
        intervals = {index: tier for index, tier in enumerate(tiers) if tier["class"] == INTERVAL_TIER}
        words = [(tier["name"], _words(tier, path)) for tier in intervals.values()]
    except WordFileError:
        raise
    except (PraatioException, ValueError, IndexError) as error:
        raise WordFileError(f"{path}: is not a valid TextGrid ({error}); {_EXPORT_AGAIN}") from error
    stated = [int(count) for count in _INTERVAL_COUNT.findall(text)]
    found = [len(tier["entries"]) for tier in intervals.values()]
    tier_count = _TIER_COUNT.search(text)
    if stated != found or tier_count is None or int(tier_count[1]) != len(tiers):
        raise WordFileError(
            f"{path}: is cut off: it states {tier_count[1] if tier_count else 'no'} tiers with {stated} intervals, "
            f"{len(tiers)} tiers with {found} intervals can be read; {_EXPORT_AGAIN}"
        )
    return words


def _words(tier: dict[str, Any], path: Path) -> list[WordTime]:
    words: list[WordTime] = []
    for number, (start, end, label) in enumerate(tier["entries"], start=1):
        start_s, end_s = float(start), float(end)
        if not 0 <= start_s <= end_s:
            raise WordFileError(
                f"{path}: interval {number} of tier {tier['name']!r} ({label!r}) lasts from {start_s} to {end_s} s; "
                "correct its times"
            )
        _append(words, label, start_s, end_s)
    return words


def _append(words: list[WordTime], word: str, start_s: float, end_s: float) -> None:
    if word.lower() not in SILENCES:
        words.append(WordTime(word, start_s, end_s, aligned=word.lower() not in UNKNOWN))


def _ctm_seconds(text: str, source: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise WordFileError(f"{source}: {text!r} is not a time; write seconds, a number from 0 up")
    return value


def _text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte-order mark, which Praat writes."""
    if not path.is_file():
        raise WordFileError(f"{path}: does not exist; check the path")
    content = path.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise WordFileError(f"{path}:{line}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
