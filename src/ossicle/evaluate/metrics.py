"""What a list of hypotheses scores against its references: word errors, BLEU and chrF, SQuAD EM and F1.

Every metric has the same form: ``metric(hypotheses, references, language=None) -> Score``, where ``references[i]`` is
one string or a list of accepted strings and ``language`` is the ISO 639-1 code of the text (only BLEU uses it, to
choose its tokenizer). All values are percentages, 0-100; a word or character error rate can exceed 100.

Empty strings are scored, not skipped: a model that says nothing pays for it. Each metric says what an empty
hypothesis or reference means to it. No utterances at all, or an utterance without a reference, is a `ValueError`.
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
    """Corpus-level word error rate: all errors over all reference words, the convention of the field.

    An empty hypothesis counts every reference word as deleted; the words said against an empty reference count as
    insertions. With several references, each utterance is scored against the one it is nearest to. Texts are compared
    after ``normalise``, `normalise_basic` by default.
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
    """Mean of the utterances' word error rates (what the paper's code reports): short utterances weigh more.

    An empty reference scores 0 if the hypothesis is empty too, else 100.
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
    """Corpus-level character error rate, spaces included; empty strings count as in `wer`."""
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


def _edits(hypotheses: Sequence[str], references: References, align: Callable, normalise: Normaliser) -> list[_Edits]:
    """Per utterance, the edits to the nearest reference, under one of jiwer's alignments."""

    def against(reference: str, hypothesis: str) -> _Edits:
        if not reference.strip():  # jiwer 3 refuses it
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
    """sacreBLEU, case and punctuation kept; tokenizer 13a, or sacreBLEU's own for ``language`` zh, ja and ko.

    An empty hypothesis only shortens the output (brevity penalty). A corpus without one matching 4-gram is near 0.
    """
    metric = BLEU(trg_lang=language or "")
    parts = bleu_parts(metric, *_columns(hypotheses, references))
    return score_of(parts, str(metric.get_signature()))


def chrf(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """chrF2: character n-gram F-score, kinder than BLEU to right stems with a wrong ending."""
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
    """SQuAD v1.1: lower-case, ASCII punctuation deleted, the articles a, an, the deleted, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def exact_match(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Share of answers equal to one of their references after `normalise_squad`."""
    return score_of(_mean_of_best(_same, hypotheses, references), _SQUAD_SIGNATURE)


def f1(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Mean over utterances of the best token F1 with a reference, after `normalise_squad`.

    An empty answer scores 0, unless a reference is empty after normalisation too: then 100, so that F1 is never
    below exact match (SQuAD v2's rule; v1.1 has no such answers).
    """
    return score_of(_mean_of_best(_token_f1, hypotheses, references), _SQUAD_SIGNATURE)


def _same(hypothesis: str, reference: str) -> float:
    return float(hypothesis == reference)


def _token_f1(hypothesis: str, reference: str) -> float:
    said, wanted = hypothesis.split(), reference.split()
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def _mean_of_best(similarity: Callable[[str, str], float], hypotheses: Sequence[str], references: References) -> Parts:
    best = [
        100 * max(similarity(normalise_squad(hypothesis), normalise_squad(reference)) for reference in accepted)
        for hypothesis, accepted in pairs(hypotheses, references)
    ]
    return mean_parts(best)


# Which metrics a task gets ------------------------------------------------------------------------------------------

METRICS: dict[str, Mapping[str, Metric]] = {
    "asr": {"wer": wer, "wer_utterance_mean": wer_utterance_mean, "cer": cer},
    "st": {"bleu": bleu, "chrf": chrf},
    "qa": {"em": exact_match, "f1": f1},
    "voice": {"em": exact_match, "majority": meta.majority},
    "meta": {"accuracy": meta.accuracy, "majority": meta.majority, "wer": wer, "bleu": bleu},
}
"""Task kind -> metric name -> metric. A task not named here is scored as question answering.

``voice`` is one attribute of ``meta``, as the lab asks for it. The description string of ``meta`` gets WER and BLEU
because the paper's code reports them.
"""


def metrics_for(
    task: str | None, *, normalise: str = "basic", language: str | None = None, spelling: Path | None = None
) -> Mapping[str, Metric]:
    """The metrics of a manifest's ``task``; no task means plain speech recognition.

    ``normalise``, ``language`` and ``spelling`` choose the `normaliser` before word and character errors.
    """
    found = METRICS.get(task or "asr", METRICS["qa"])
    if normalise == "basic":
        return found
    chosen = normaliser(normalise, language, spelling)
    return {
        name: partial(metric, normalise=chosen) if metric in _WORD_ERRORS else metric for name, metric in found.items()
    }
