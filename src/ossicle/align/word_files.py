"""Word times that others wrote: TextGrid (Praat, Montreal Forced Aligner) and CTM (Kaldi, NeMo)."""

from __future__ import annotations

import codecs
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ossicle.data.words import WordTime
from ossicle.errors import WordFileError

SILENCES = frozenset(("", "<eps>", "sil", "sp", "<sil>", "<silence>", "!sil"))
"""What aligners write where no word is."""

UNKNOWN = frozenset(("<unk>", "[unk]", "spn"))
"""What aligners write for a word that their dictionary lacks."""

# Praat reads strings, flags and numbers that stand free, and takes the rest ("xmin =", "intervals [1]:") for comments.
# The long and the short format are therefore one.
_VALUE = re.compile(
    r'"(?P<string>(?:[^"]|"")*)"|<(?P<flag>\w+)>|(?<!\S)(?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)'
)


def read_textgrid(path: Path, *, speaker: str | None = None) -> list[WordTime]:
    """The words of a TextGrid, silences left out.

    They come from the interval tier "words"; among several ("anna - words", "ben - words") from the one of
    ``speaker``; where there is one interval tier only, from that, whatever its name. Raises `WordFileError`.
    """
    tiers = _TextGridReader(path).tiers()
    by_name = {name.lower(): words for name, words in tiers}
    wanted = [f"{speaker} - words".lower(), "words"] if speaker else ["words"]
    found = [by_name[name] for name in wanted if name in by_name]
    found = found or [words for name, words in by_name.items() if name.endswith(" - words")]
    found = found or list(by_name.values())
    if not found or (len(found) > 1 and not any(name in by_name for name in wanted)):
        names = ", ".join(repr(name) for name, _ in tiers) or "none"
        raise WordFileError(f'{path}:1: cannot tell the tier of words (interval tiers: {names}); call it "words"')
    return found[0]


def read_ctm(path: Path) -> dict[str, list[WordTime]]:
    """The words of each recording of a CTM file (``recording channel start_s duration_s word [confidence]``).

    Words come in order of time, whatever the file's. Raises `WordFileError`.
    """
    recordings: defaultdict[str, list[WordTime]] = defaultdict(list)
    for number, line in enumerate(_text(path).split("\n"), start=1):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        if len(fields) < 5:
            raise WordFileError(
                f"{path}:{number}: has {len(fields)} fields; a line is: recording channel start_s duration_s word"
            )
        recording, _, *times, word = fields[:5]
        start_s, duration_s = (_ctm_seconds(text, f"{path}:{number}") for text in times)
        _append(recordings[recording], word, start_s, start_s + duration_s)
    return {name: sorted(words, key=lambda word: word.start_s) for name, words in recordings.items()}


@dataclass
class _Value:
    kind: str  # string, flag or number
    text: str
    line: int


class _TextGridReader:
    """Takes one value after the other; an unexpected one is an error with its line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = self._values(_text(path))
        self.line = 1

    def tiers(self) -> list[tuple[str, list[WordTime]]]:
        """Name and words of each interval tier."""
        header = self._take("string").text, self._take("string").text
        if header not in (("ooTextFile", "TextGrid"), ("ooTextFile short", "TextGrid")):
            self._fail(f'begins with {header}; a TextGrid begins with "ooTextFile" and "TextGrid"')
        self._numbers(2)
        if self._take("flag").text != "exists":
            return []
        tiers = []
        for _ in range(self._count()):
            tier_class, name = self._take("string").text, self._take("string").text
            self._numbers(2)
            if tier_class == "IntervalTier":
                tiers.append((name, self._intervals()))
            else:
                for _ in range(self._count()):
                    self._numbers(1)
                    self._take("string")
        return tiers

    def _intervals(self) -> list[WordTime]:
        words: list[WordTime] = []
        for _ in range(self._count()):
            start_s, end_s = self._numbers(2)
            text = self._take("string").text
            if not 0 <= start_s <= end_s:
                self._fail(f"the interval {text!r} lasts from {start_s} to {end_s} s; correct its times")
            _append(words, text.replace('""', '"').strip(), start_s, end_s)
        return words

    def _count(self) -> int:
        return int(self._numbers(1)[0])

    def _numbers(self, count: int) -> list[float]:
        return [float(self._take("number").text) for _ in range(count)]

    def _take(self, kind: str) -> _Value:
        value = next(self.values, None)
        if value is None:
            self._fail(f"the file ends where a {kind} should follow; write it out anew")
        self.line = value.line
        if value.kind != kind:
            self._fail(f"{value.text[:40]!r} is a {value.kind} where a {kind} should stand; write the file out anew")
        return value

    def _fail(self, message: str) -> NoReturn:
        raise WordFileError(f"{self.path}:{self.line}: {message}")

    def _values(self, text: str) -> Iterator[_Value]:
        line, counted = 1, 0
        for match in _VALUE.finditer(text):
            line += text.count("\n", counted, match.start())
            counted = match.start()
            kind = str(match.lastgroup)
            yield _Value(kind, match[kind], line)


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
    """The file's text: UTF-8, or UTF-16 with a byte-order mark as Praat writes it."""
    if not path.is_file():
        raise WordFileError(f"{path}: there is no such file")
    content = path.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise WordFileError(f"{path}:{line}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
