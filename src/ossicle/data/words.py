"""Read and write the word times of manifest lines, and draw the random spans of mixed speech-text sequences.

    {"id": "a1", ..., "words": [["anna", 0.05, 0.31], ["saw", 0.31, 0.52], ["27", 0.52, 1.1, "interpolated"]],
     "words_from": "ctc:lab@1f2e3d4c"}

Times are seconds from the start of the utterance, which is the start of the segment if the line selects one.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from ossicle.batch import Sample
from ossicle.data.manifest import LONGEST_S
from ossicle.errors import ManifestError

WORDS, WORDS_FROM = "words", "words_from"
"""Fields of a manifest line: the word times, and the aligner that made them (absent if the corpus provides them)."""

INTERPOLATED = "interpolated"
"""Fourth value of a word of which some characters could not be aligned."""

TEXT_SPAN_WORDS, SPEECH_SPAN_WORDS = (4, 10), (2, 5)
"""Fewest and most words of a span, as in the paper's mixed speech-text next-word prediction."""

Kind = Literal["text", "speech"]


@dataclass(frozen=True)
class WordTime:
    """A word as the transcript writes it, and the time when it is spoken."""

    word: str
    start_s: float
    end_s: float
    aligned: bool = True
    """False if the times were interpolated between the neighbouring words, and are therefore less precise."""

    def to_json(self) -> list[Any]:
        """Return the value for the manifest, with times rounded to milliseconds."""
        times = [self.word, round(self.start_s, 3), round(self.end_s, 3)]
        return times if self.aligned else [*times, INTERPOLATED]


@dataclass(frozen=True)
class Span:
    """Consecutive words of an utterance, which the LLM receives as text or as speech."""

    kind: Kind
    first_word: int
    last_word: int
    """Index of the last word, which belongs to the span."""
    words: tuple[WordTime, ...]

    @property
    def text(self) -> str:
        """Return the words without punctuation, joined by spaces."""
        return " ".join(without_punctuation(word.word) for word in self.words)

    @property
    def start_s(self) -> float:
        """Return the time in seconds at which the first word starts."""
        return self.words[0].start_s

    @property
    def end_s(self) -> float:
        """Return the time in seconds at which the last word ends."""
        return self.words[-1].end_s


def words_of(sample: Sample) -> list[WordTime]:
    """Return the word times of a manifest line. Raises `ManifestError` if they are missing or invalid."""
    values = sample.extra.get(WORDS)
    if not isinstance(values, list) or not values:
        raise ManifestError(f'{sample.source}: {sample.id!r} has no "words": make them with "ossicle align"')
    words = [_word(value, sample) for value in values]
    for earlier, later in pairwise(words):
        if later.start_s < earlier.start_s:
            raise ManifestError(f'{sample.source}: "words": {later.word!r} starts before {earlier.word!r}; sort them')
    return words


def with_words(sample: Sample, words: Sequence[WordTime], words_from: str, **fields: Any) -> Sample:
    """Return ``sample`` with these word times, the aligner that made them, and other ``fields`` of the manifest."""
    new = {WORDS: [word.to_json() for word in words], WORDS_FROM: words_from, **fields}
    return replace(sample, extra={**sample.extra, **new})


def spoken_words(text: str) -> list[str]:
    """Return the words of ``text`` as written; tokens that are punctuation only are left out."""
    return [word for word in text.split() if without_punctuation(word)]


def without_punctuation(word: str) -> str:
    """Remove the punctuation around ``word``, but not inside it: ``"don't,"`` becomes ``"don't"``."""
    first, stop = 0, len(word)
    while first < stop and not _is_letter(word[first]):
        first += 1
    while stop > first and not _is_letter(word[stop - 1]):
        stop -= 1
    return word[first:stop]


def span_rng(sample_id: str, epoch: int, seed: int = 0) -> random.Random:
    """Return a generator that depends only on the arguments: not on machine, process or order of the data."""
    return random.Random(f"spans/{seed}/{epoch}/{sample_id}")


def mixed_spans(words: Sequence[WordTime], rng: random.Random) -> list[Span]:
    """Cut ``words`` into alternating spans: text of 4 to 10 words, speech of 2 to 5 words; either kind may be first.

    Every word is in exactly one span, and the last span has the remaining words. Words that are only punctuation are
    left out.
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
    """Return True for letters, digits and marks that combine with letters (vowel signs, accents)."""
    return unicodedata.category(character)[0] in "LNM"


def _word(value: Any, sample: Sample) -> WordTime:
    match value:
        case [str(word), int() | float() as start_s, int() | float() as end_s, *flag] if (
            0 <= start_s <= end_s <= LONGEST_S and flag in ([], [INTERPOLATED])
        ):
            return WordTime(word, float(start_s), float(end_s), aligned=not flag)
    raise ManifestError(
        f'{sample.source}: "words" holds {str(value)[:60]}; write ["word", start_s, end_s], with a fourth value '
        f'"{INTERPOLATED}" if the word is not aligned'
    )
