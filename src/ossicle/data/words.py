"""Words and when they are spoken, as manifests keep them, and the random spans of mixed speech-text sequences.

    {"id": "a1", ..., "words": [["anna", 0.05, 0.31], ["saw", 0.31, 0.52], ["27", 0.52, 1.1, "interpolated"]],
     "words_from": "ctc:lab@1f2e3d4c"}

Times are seconds from the start of the utterance (of the segment, where the line cuts one out of a longer file).
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from ossicle.batch import Sample
from ossicle.errors import ManifestError

WORDS, WORDS_FROM = "words", "words_from"
"""Fields of a manifest line: the times, and what made them (absent: the corpus itself)."""

INTERPOLATED = "interpolated"
"""Marks, as a fourth value, a word of which some characters could not be aligned."""

TEXT_SPAN_WORDS, SPEECH_SPAN_WORDS = (4, 10), (2, 5)
"""Fewest and most words of a span (METHOD, mixed speech-text next-word prediction)."""

Kind = Literal["text", "speech"]


@dataclass(frozen=True)
class WordTime:
    """A word as the transcript writes it, and where it is spoken."""

    word: str
    start_s: float
    end_s: float
    aligned: bool = True
    """False where part of the word was placed between its neighbours: read its times with care."""

    def to_json(self) -> list[Any]:
        """The manifest's form; times to the millisecond."""
        times = [self.word, round(self.start_s, 3), round(self.end_s, 3)]
        return times if self.aligned else [*times, INTERPOLATED]


@dataclass(frozen=True)
class Span:
    """Consecutive words of an utterance, to be given to the LLM as text or as speech."""

    kind: Kind
    first_word: int
    last_word: int
    """Included."""
    words: tuple[WordTime, ...]

    @property
    def text(self) -> str:
        """The words without punctuation, joined by spaces."""
        return " ".join(without_punctuation(word.word) for word in self.words)

    @property
    def start_s(self) -> float:
        """Where its first word starts."""
        return self.words[0].start_s

    @property
    def end_s(self) -> float:
        """Where its last word ends."""
        return self.words[-1].end_s


def words_of(sample: Sample) -> list[WordTime]:
    """The word times of a manifest line. Raises `ManifestError` where it has none, or wrong ones."""
    values = sample.extra.get(WORDS)
    if not isinstance(values, list) or not values:
        raise ManifestError(f'{sample.source}: {sample.id!r} has no "words": make them with "ossicle align"')
    words = [_word(value, sample) for value in values]
    for earlier, later in pairwise(words):
        if later.start_s < earlier.start_s:
            raise ManifestError(f'{sample.source}: "words": {later.word!r} starts before {earlier.word!r}; sort them')
    return words


def with_words(sample: Sample, words: Sequence[WordTime], words_from: str, **fields: Any) -> Sample:
    """The sample with these times, what made them, and other ``fields`` of the manifest."""
    new = {WORDS: [word.to_json() for word in words], WORDS_FROM: words_from, **fields}
    return replace(sample, extra={**sample.extra, **new})


def spoken_words(text: str) -> list[str]:
    """The words of ``text`` as written; a lone dash is not one."""
    return [word for word in text.split() if without_punctuation(word)]


def without_punctuation(word: str) -> str:
    """``"don't,"`` -> ``"don't"``: marks inside a word are its spelling, those around it are not."""
    first, stop = 0, len(word)
    while first < stop and not _is_letter(word[first]):
        first += 1
    while stop > first and not _is_letter(word[stop - 1]):
        stop -= 1
    return word[first:stop]


def span_rng(sample_id: str, epoch: int, seed: int = 0) -> random.Random:
    """Draws that depend on these alone: the same on every machine, in every process, in any order of the data."""
    return random.Random(f"spans/{seed}/{epoch}/{sample_id}")


def mixed_spans(words: Sequence[WordTime], rng: random.Random) -> list[Span]:
    """Cut ``words`` into alternating spans: text of 4 to 10 words, speech of 2 to 5, either first.

    Every word is in exactly one span; the last one has what is left. Words that are punctuation alone are left out.
    """
    words = [word for word in words if without_punctuation(word.word)]
    kind: Kind = rng.choice(("text", "speech"))
    spans: list[Span] = []
    first = 0
    while first < len(words):
        stop = min(first + rng.randint(*(TEXT_SPAN_WORDS if kind == "text" else SPEECH_SPAN_WORDS)), len(words))
        spans.append(Span(kind, first, stop - 1, tuple(words[first:stop])))
        kind = "speech" if kind == "text" else "text"
        first = stop
    return spans


def _is_letter(character: str) -> bool:
    """Letters, digits and the marks that combine with letters (vowel signs, accents)."""
    return unicodedata.category(character)[0] in "LNM"


def _word(value: Any, sample: Sample) -> WordTime:
    match value:
        case [str(word), int() | float() as start_s, int() | float() as end_s, *flag] if (
            0 <= start_s <= end_s and flag in ([], [INTERPOLATED])
        ):
            return WordTime(word, float(start_s), float(end_s), aligned=not flag)
    raise ManifestError(
        f'{sample.source}: "words" holds {str(value)[:60]}; write ["word", start_s, end_s], and a fourth value '
        f'"{INTERPOLATED}" where it is not aligned'
    )
