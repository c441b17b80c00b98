"""Compute the metrics of each task: word and character error rates, BLEU, chrF, and SQuAD's exact match and F1.

All metrics have the form ``metric(hypotheses, references, language=None) -> Score``. ``references[i]`` is one string or
a list of accepted strings. ``language`` is the language tag of the text, such as ``zh`` or ``zh-CN``. All values are
percentages, 0-100, but error rates can exceed 100. All metrics compare texts after `ossicle.evaluate.normalise.clean`,
so that composed and decomposed letters are equal. The scorers of the paper's code are in `ossicle.evaluate.official`.

Empty strings are scored, not skipped. Each metric documents the effect of an empty hypothesis or reference. All raise
`ValueError` if there are no utterances, or if an utterance has no reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer
from sacrebleu.metrics import BLEU, CHRF

from ossicle.errors import MissingPackageError
from ossicle.evaluate import meta
from ossicle.evaluate.hypotheses import task_name
from ossicle.evaluate.normalise import Normaliser, clean, normalise_basic, normaliser
from ossicle.evaluate.official import OFFICIAL
from ossicle.evaluate.parts import (
    Metric,
    Parts,
    References,
    Score,
    bleu_parts,
    chrf_parts,
    mean_parts,
    pairs,
    rate_parts,
    score_of,
)
from ossicle.evaluate.squad import exact_match, f1, normalise_squad
from ossicle.languages import CHINESE, WITHOUT_SPACES, join_unspaced, language_code, split_unspaced, unspaced_script

__all__ = [
    "METRICS",
    "Metric",
    "References",
    "Score",
    "bleu",
    "bleu_tokenizer",
    "cer",
    "chrf",
    "exact_match",
    "f1",
    "metrics_for",
    "normalise_basic",
    "normalise_squad",
    "wer",
    "wer_utterance_mean",
]


# Word and character error rate -------------------------------------------------------------------------------------


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

    Punctuation counts unless the normaliser removes it. Spaces between words count, as in jiwer. Spaces in languages
    without spaces between words, such as Chinese, and beside characters of their scripts do not count, unless the
    normaliser is ``none`` or ``official``.
    """
    normalise = normalise or normaliser("basic", language)
    edits = _edits(hypotheses, references, _characters(normalise, language), normalise)
    return score_of(_error_parts(edits), _error_signature("corpus", normalise))


_WORD_ERRORS = (wer, wer_utterance_mean, cer)


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
    if language_code(language) in WITHOUT_SPACES:
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


# Translation -------------------------------------------------------------------------------------------------------


def bleu(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute BLEU with sacreBLEU, with case and punctuation.

    `bleu_tokenizer` chooses the tokenizer by ``language``. If that is 13a, but most letters of the references are in a
    script without spaces between words, it is ``zh`` for Chinese characters and ``char`` for others. An empty
    hypothesis only shortens the output (brevity penalty). The score of a corpus without a matching 4-gram is near 0.

    Raises:
        MissingPackageError: the tokenizer of Japanese or Korean is not installed.
    """
    said, right = _columns(hypotheses, references)
    tokenizer = bleu_tokenizer(language)
    if tokenizer == "13a":  # the language may be missing or wrong
        script = unspaced_script(text for accepted in right for text in accepted)
        tokenizer = {"han": "zh", "other": "char"}.get(script or "", "13a")
    metric = _bleu(tokenizer, language)
    return score_of(bleu_parts(metric, said, right), str(metric.get_signature()))


def bleu_tokenizer(language: str | None) -> str:
    """Return sacreBLEU's tokenizer for a language tag.

    It is ``zh`` for the Chinese languages, ``ja-mecab`` for Japanese, ``ko-mecab`` for Korean, and ``char`` for Thai,
    Lao, Khmer and Burmese, which sacreBLEU cannot split into words. All other languages have ``13a``.
    """
    code = language_code(language)
    if code in CHINESE:
        return "zh"
    if code in WITHOUT_SPACES - {"ja"}:
        return "char"
    return {"ja": "ja-mecab", "ko": "ko-mecab"}.get(code or "", "13a")


def check_bleu(language: str | None) -> None:
    """Raise `MissingPackageError` if BLEU in ``language`` needs a package that is not installed."""
    _bleu(bleu_tokenizer(language), language)


def _bleu(tokenizer: str, language: str | None) -> BLEU:
    try:
        return BLEU(tokenize=tokenizer)
    except (RuntimeError, ImportError) as error:  # sacreBLEU raises RuntimeError for a missing package
        code = language_code(language)
        raise MissingPackageError(
            f"BLEU in the language {language!r} needs a tokenizer that is not installed: "
            f"run pip install 'sacrebleu[{code}]'"
        ) from error


def chrf(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute chrF2, the character n-gram F-score, which gives credit for correct stems with a wrong ending."""
    metric = CHRF()
    parts = chrf_parts(metric, *_columns(hypotheses, references))
    return score_of(parts, str(metric.get_signature()))


def _columns(hypotheses: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
    both = pairs(hypotheses, references)
    return [clean(hypothesis) for hypothesis, _ in both], [list(map(clean, accepted)) for _, accepted in both]


# Metrics of each task -------------------------------------------------------------------------------------------

METRICS: dict[str, Mapping[str, Metric]] = {
    "asr": {"wer": wer, "wer_utterance_mean": wer_utterance_mean, "cer": cer},
    "st": {"bleu": bleu, "chrf": chrf},
    "qa": {"em": exact_match, "f1": f1},
    "voice": {"em": exact_match, "majority": meta.majority},
    "meta": {"accuracy": meta.accuracy, "majority": meta.majority, "wer": wer, "bleu": bleu},
}
"""Task -> metric name -> metric. Other tasks are scored as question answering.

``voice`` asks for a single attribute of the speaker. ``meta`` has WER and BLEU of the description, as the paper's code
has them; its own variants of both are in `ossicle.evaluate.official`.
"""


def metrics_for(
    task: str | None,
    *,
    normalise: str = "basic",
    language: str | None = None,
    spelling: Path | None = None,
    official: bool = False,
) -> Mapping[str, Metric]:
    """Return the metrics of a task by name; None is speech recognition.

    ``normalise``, ``language`` and ``spelling`` select the `normaliser` of word and character error rates. ``official``
    adds the scorers of the paper's code. Raises as `normaliser`.
    """
    task = task_name(task)
    found = METRICS.get(task, METRICS["qa"])
    if normalise != "basic":
        chosen = normaliser(normalise, language, spelling)
        found = {
            name: partial(metric, normalise=chosen) if metric in _WORD_ERRORS else metric
            for name, metric in found.items()
        }
    return {**found, **OFFICIAL.get(task, OFFICIAL["qa"])} if official else found
