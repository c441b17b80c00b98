"""Compute the metrics of each task: word and character error rates, BLEU, chrF, and SQuAD's exact match and F1.

All metrics have the form ``metric(hypotheses, references, language=None) -> Score``. ``references[i]`` is one string or
a list of accepted strings. ``language`` is the ISO 639-1 code of the text; only BLEU uses it, to choose its tokenizer.
All values are percentages, 0-100, but error rates can exceed 100.

Empty strings are scored, not skipped. Each metric documents the effect of an empty hypothesis or reference. All raise
`ValueError` if there are no utterances, or if an utterance has no reference.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer
from sacrebleu.metrics import BLEU, CHRF

from ossicle.evaluate import meta
from ossicle.evaluate.normalise import Normaliser, normalise_basic, normaliser
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

__all__ = [
    "METRICS",
    "Metric",
    "References",
    "Score",
    "bleu",
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
    after ``normalise``, by default `normalise_basic`.
    """
    normalise = normalise or _BASIC
    edits = _edits(hypotheses, references, jiwer.process_words, normalise)
    return score_of(_error_parts(edits), _error_signature("corpus", normalise))


def wer_utterance_mean(
    hypotheses: Sequence[str],
    references: References,
    language: str | None = None,
    *,
    normalise: Normaliser | None = None,
) -> Score:
    """Compute the mean of the utterances' word error rates, which the paper's code reports.

    Short utterances have more weight than in `wer`. With an empty reference, the rate of the utterance is 0 for an
    empty hypothesis and 100 otherwise.
    """
    normalise = normalise or _BASIC
    edits = _edits(hypotheses, references, jiwer.process_words, normalise)
    return score_of(mean_parts([each.rate for each in edits]), _error_signature("utterance mean", normalise))


def cer(
    hypotheses: Sequence[str],
    references: References,
    language: str | None = None,
    *,
    normalise: Normaliser | None = None,
) -> Score:
    """Compute the corpus-level character error rate, including spaces. Empty strings count as in `wer`."""
    normalise = normalise or _BASIC
    edits = _edits(hypotheses, references, jiwer.process_characters, normalise)
    return score_of(_error_parts(edits), _error_signature("corpus", normalise))


_BASIC = normaliser("basic")
_WORD_ERRORS = (wer, wer_utterance_mean, cer)


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


def _edits(
    hypotheses: Sequence[str], references: References, align: Callable[..., Any], normalise: Normaliser
) -> list[_Edits]:
    """Return the edits of each utterance against its nearest reference; ``align`` is a function of jiwer."""

    def against(reference: str, hypothesis: str) -> _Edits:
        if not reference.strip():  # jiwer 3 raises an error for it
            return _Edits(len(hypothesis.split() if align is jiwer.process_words else hypothesis.strip()), 0)
        found = align(reference, hypothesis)
        deleted_or_replaced = found.substitutions + found.deletions
        return _Edits(deleted_or_replaced + found.insertions, found.hits + deleted_or_replaced)

    return [
        min(
            (against(normalise.apply(reference), normalise.apply(hypothesis)) for reference in accepted),
            key=lambda edits: edits.rate,
        )
        for hypothesis, accepted in pairs(hypotheses, references)
    ]


# Translation -------------------------------------------------------------------------------------------------------


def bleu(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute BLEU with sacreBLEU, with case and punctuation.

    The tokenizer is 13a, or sacreBLEU's tokenizer for ``language`` zh, ja or ko. An empty hypothesis only shortens the
    output (brevity penalty). The score of a corpus without a matching 4-gram is near 0.
    """
    metric = BLEU(trg_lang=language or "")
    parts = bleu_parts(metric, *_columns(hypotheses, references))
    return score_of(parts, str(metric.get_signature()))


def chrf(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute chrF2, the character n-gram F-score, which gives credit for correct stems with a wrong ending."""
    metric = CHRF()
    parts = chrf_parts(metric, *_columns(hypotheses, references))
    return score_of(parts, str(metric.get_signature()))


def _columns(hypotheses: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
    both = pairs(hypotheses, references)
    return [hypothesis for hypothesis, _ in both], [accepted for _, accepted in both]


# Question answering ------------------------------------------------------------------------------------------------

_SQUAD_SIGNATURE = "norm:squad-1.1|refs:max"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_squad(text: str) -> str:
    """Normalise as SQuAD v1.1: lower case, no ASCII punctuation, no articles (a, an, the), single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def exact_match(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute the percentage of answers that equal one of their references after `normalise_squad`."""
    return score_of(_mean_of_best(_same, hypotheses, references), _SQUAD_SIGNATURE)


def f1(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute the mean over utterances of the best token F1 with a reference, after `normalise_squad`.

    An empty answer scores 0, or 100 if a reference is empty after normalisation too. This is the rule of SQuAD v2, and
    it keeps F1 from being below exact match; v1.1 has no such answers.
    """
    return score_of(_mean_of_best(_token_f1, hypotheses, references), _SQUAD_SIGNATURE)


def _same(hypothesis: str, reference: str) -> float:
    return float(hypothesis == reference)


def _token_f1(hypothesis: str, reference: str) -> float:
    answer, expected = hypothesis.split(), reference.split()
    if not answer or not expected:
        return float(answer == expected)
    shared = sum((Counter(answer) & Counter(expected)).values())
    return 2 * shared / (len(answer) + len(expected))


def _mean_of_best(similarity: Callable[[str, str], float], hypotheses: Sequence[str], references: References) -> Parts:
    best = [
        100 * max(similarity(normalise_squad(hypothesis), normalise_squad(reference)) for reference in accepted)
        for hypothesis, accepted in pairs(hypotheses, references)
    ]
    return mean_parts(best)


# Metrics of each task -------------------------------------------------------------------------------------------

METRICS: dict[str, Mapping[str, Metric]] = {
    "asr": {"wer": wer, "wer_utterance_mean": wer_utterance_mean, "cer": cer},
    "st": {"bleu": bleu, "chrf": chrf},
    "qa": {"em": exact_match, "f1": f1},
    "voice": {"em": exact_match, "majority": meta.majority},
    "meta": {"accuracy": meta.accuracy, "majority": meta.majority, "wer": wer, "bleu": bleu},
}
"""Task -> metric name -> metric. Other tasks are scored as question answering.

``voice`` asks for a single attribute of the speaker. ``meta`` has WER and BLEU of the description because the paper's
code reports them.
"""


def metrics_for(
    task: str | None, *, normalise: str = "basic", language: str | None = None, spelling: Path | None = None
) -> Mapping[str, Metric]:
    """Return the metrics of a task by name; None is speech recognition.

    ``normalise``, ``language`` and ``spelling`` select the `normaliser` of word and character error rates. Raises as
    `normaliser`.
    """
    found = METRICS.get(task or "asr", METRICS["qa"])
    if normalise == "basic":
        return found
    chosen = normaliser(normalise, language, spelling)
    return {
        name: partial(metric, normalise=chosen) if metric in _WORD_ERRORS else metric for name, metric in found.items()
    }
