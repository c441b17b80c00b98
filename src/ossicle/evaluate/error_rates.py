"""Compute word and character error rates, with jiwer's alignment.

The metrics have the form of `ossicle.evaluate.metrics`. In languages of `counts_characters` only the character error
rate is a fair measure: their words have no spaces between them, or spaces that writers set as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jiwer

from ossicle.evaluate.normalise import Normaliser, normaliser
from ossicle.evaluate.parts import Parts, References, Score, mean_parts, pairs, rate_parts, score_of
from ossicle.languages import WITHOUT_SPACES, join_unspaced, language_code, split_unspaced

CHARACTER_LANGUAGES = WITHOUT_SPACES | {"ko"}
"""Languages with a character error rate in place of a word error rate. Chinese languages, Japanese, Thai, Lao, Khmer
and Burmese have no spaces between words, and many spaces of Korean are optional."""


def counts_characters(language: str | None) -> bool:
    """Return True if transcripts in ``language`` are scored by characters and not by words."""
    return language_code(language) in CHARACTER_LANGUAGES


def wer(
    hypotheses: Sequence[str],
    references: References,
    language: str | None = None,
    *,
    normalise: Normaliser | None = None,
) -> Score:
    """Compute the corpus-level word error rate: the errors of all utterances divided by all reference words.

    An empty hypothesis counts every reference word as deleted. Words against an empty reference count as insertions.
    With several references, each utterance is scored against the one with the lowest error rate. Texts are compared
    after ``normalise``, by default `normalise_basic`. Each character of a script without spaces between words, such as
    Chinese, Japanese or Thai, counts as a word. The rate is then the character error rate.
    """
    normalise = normalise or normaliser("basic", language)
    edits = _edits(hypotheses, references, _WORDS, normalise)
    return score_of(_error_parts(edits), _error_signature("corpus", normalise))


def wer_utterance_mean(
    hypotheses: Sequence[str],
    references: References,
    language: str | None = None,
    *,
    normalise: Normaliser | None = None,
) -> Score:
    """Compute the mean of the utterances' word error rates.

    Short utterances have more weight than in `wer`. With an empty reference, the rate of the utterance is 0 for an
    empty hypothesis and 100 otherwise. The paper's code reports this mean after its own normalisation, see
    `ossicle.evaluate.official.official_wer`.
    """
    normalise = normalise or normaliser("basic", language)
    edits = _edits(hypotheses, references, _WORDS, normalise)
    return score_of(mean_parts([each.rate for each in edits]), _error_signature("utterance mean", normalise))


def cer(
    hypotheses: Sequence[str],
    references: References,
    language: str | None = None,
    *,
    normalise: Normaliser | None = None,
) -> Score:
    """Compute the corpus-level character error rate. Empty strings count as in `wer`.

    Punctuation counts unless the normaliser removes it. Spaces between words count, as in jiwer. Spaces in languages of
    `counts_characters`, such as Chinese and Korean, and beside characters of scripts without spaces do not count,
    unless the normaliser is ``none`` or ``official``.
    """
    normalise = normalise or normaliser("basic", language)
    edits = _edits(hypotheses, references, _characters(normalise, language), normalise)
    return score_of(_error_parts(edits), _error_signature("corpus", normalise))


@dataclass(frozen=True)
class _Units:
    """Units that an error rate counts."""

    align: Callable[..., Any]
    """Function of jiwer."""
    prepare: Callable[[str], str]
    """Function of a normalised text that returns it as ``align`` is to read it."""


_WORDS = _Units(jiwer.process_words, lambda text: " ".join(split_unspaced(text).split()))


def _characters(normalise: Normaliser, language: str | None) -> _Units:
    if normalise.keeps_spaces:
        return _Units(jiwer.process_characters, str)
    if counts_characters(language):
        return _Units(jiwer.process_characters, lambda text: "".join(text.split()))
    return _Units(jiwer.process_characters, join_unspaced)


@dataclass(frozen=True)
class _Edits:
    errors: int
    length: int  # words or characters of the reference

    @property
    def rate(self) -> float:
        if self.length == 0:
            return 100.0 if self.errors else 0.0
        return 100 * self.errors / self.length


def _error_signature(level: str, normalise: Normaliser) -> str:
    return f"level:{level}|{normalise.signature}|jiwer:{version('jiwer')}"


def _error_parts(edits: Sequence[_Edits]) -> Parts:
    return rate_parts([each.errors for each in edits], [each.length for each in edits])


def _edits(hypotheses: Sequence[str], references: References, units: _Units, normalise: Normaliser) -> list[_Edits]:
    """Return the edits of each utterance against its nearest reference."""

    def read(text: str) -> str:
        return units.prepare(normalise.apply(text))

    def against(reference: str, hypothesis: str) -> _Edits:
        if not reference.strip():  # jiwer 3 raises an error for it
            return _Edits(len(hypothesis.split() if units is _WORDS else hypothesis.strip()), 0)
        found = units.align(reference, hypothesis)
        deleted_or_replaced = found.substitutions + found.deletions
        return _Edits(deleted_or_replaced + found.insertions, found.hits + deleted_or_replaced)

    return [
        min(
            (against(read(reference), read(hypothesis)) for reference in accepted),
            key=lambda edits: edits.rate,
        )
        for hypothesis, accepted in pairs(hypotheses, references)
    ]
