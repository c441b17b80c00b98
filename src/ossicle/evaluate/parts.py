"""Compute scores from sums of per-utterance counts, so that a bootstrap resample is one matrix product.

Shapes: N utterances, K counts per utterance, R resamples. Every metric here is a function of the sum of its counts,
e.g. of errors and reference words. These counts are the sufficient statistics of the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF

from ossicle.public import translation_counts

Floats = NDArray[np.float64]

BLEU_ORDER = 4
CHRF_BETA = 2


@dataclass(frozen=True)
class Parts:
    """Counts of a score and the function that computes its value from their sums."""

    counts: Floats  # (N, K)
    value_of: Callable[[Floats], Floats]
    """Function from sums of counts (R, K) to values (R,), 0-100."""

    @property
    def value(self) -> float:
        """Score over all utterances."""
        return float(self.value_of(self.counts.sum(axis=0)[None])[0])


@dataclass(frozen=True)
class Score:
    """A percentage and its signature: scores are comparable if their signatures are equal."""

    value: float
    signature: str
    parts: Parts | None = field(default=None, compare=False, repr=False)
    """Counts behind the value; a score without them gets no confidence interval."""


References = Sequence[str | Sequence[str]]
"""One reference, or several accepted references, per utterance."""
Metric = Callable[[Sequence[str], References, str | None], Score]
"""Function of hypotheses, references and the language (ISO 639-1)."""


def score_of(parts: Parts, signature: str) -> Score:
    """Return the score with the value of ``parts``."""
    return Score(parts.value, signature, parts)


def pairs(hypotheses: Sequence[str], references: References) -> list[tuple[str, list[str]]]:
    """Return each hypothesis with its list of references.

    Raises:
        ValueError: the lengths differ, there is nothing to score, or an utterance has no reference.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references: give one entry for each")
    if not hypotheses:
        raise ValueError("nothing to score: the list of hypotheses is empty")
    both = [
        (hypothesis, [accepted] if isinstance(accepted, str) else list(accepted))
        for hypothesis, accepted in zip(hypotheses, references, strict=True)
    ]
    for index, (_, accepted) in enumerate(both):
        if not accepted:
            raise ValueError(f"utterance {index} has no reference: give at least one string, even an empty one")
    return both


def all_texts(references: References) -> Iterator[str]:
    """Yield every reference of every utterance."""
    for accepted in references:
        yield from [accepted] if isinstance(accepted, str) else accepted


def mean_parts(values: Sequence[float]) -> Parts:
    """Return the parts of a mean over utterances, given one value per utterance, 0-100; K = 2."""
    column = np.asarray(values, dtype=float)
    return Parts(np.stack([column, np.ones_like(column)], axis=1), mean_value)


def rate_parts(errors: Sequence[int], lengths: Sequence[int]) -> Parts:
    """Return the parts of an error rate: all errors divided by the length of all references, in percent; K = 2.

    If the total length is 0, the rate is 100 with errors and 0 without.
    """
    return Parts(np.stack([np.asarray(errors, float), np.asarray(lengths, float)], axis=1), rate_value)


def bleu_parts(metric: BLEU, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """Return the parts of BLEU-4 with exponential smoothing, from the n-gram counts of sacreBLEU; K = 10."""
    return Parts(np.asarray(translation_counts(metric, list(hypotheses), references), dtype=float), bleu_value)


def chrf_parts(metric: CHRF, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """Return the parts of chrF2, from sacreBLEU's counts against the best reference of each utterance; K = 18."""
    return Parts(np.asarray(translation_counts(metric, list(hypotheses), references), dtype=float), chrf_value)


def mean_value(sums: Floats) -> Floats:
    """Compute means (R,) from sums (R, 2) of values and of utterances."""
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def rate_value(sums: Floats) -> Floats:
    """Compute rates (R,) in percent from sums (R, 2) of errors and of reference lengths."""
    errors, length = sums[:, 0], sums[:, 1]
    empty = np.where(errors > 0, 100.0, 0.0)
    return np.where(length > 0, 100 * errors / np.maximum(length, 1), empty)


def bleu_value(sums: Floats) -> Floats:
    """Compute BLEU (R,) as sacreBLEU's ``BLEU.compute_bleu`` does.

    The columns of ``sums`` (R, 10) are hypothesis length, reference length, 4 matches and 4 totals.
    """
    hypothesis, reference = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + BLEU_ORDER], sums[:, 2 + BLEU_ORDER :]
    penalty = np.where(hypothesis < reference, np.exp(1 - reference / np.maximum(hypothesis, 1)), 1.0)
    zeros_so_far = np.cumsum(matches == 0, axis=1)
    smoothed = np.where(matches > 0, matches, 0.5**zeros_so_far)  # the k-th order without a match counts as 1 / 2**k
    with np.errstate(divide="ignore"):
        logs = np.log(smoothed) - np.log(totals)
    scored = (totals.min(axis=1) > 0) & (matches.max(axis=1) > 0)  # (R,)
    logs = np.where(np.expand_dims(scored, 1), logs, -np.inf)
    value: Floats = np.minimum(100 * penalty * np.exp(logs.mean(axis=1)), 100.0)
    return value


def nltk_bleu_value(sums: Floats) -> Floats:
    """Compute BLEU (R,) without smoothing, as NLTK's ``corpus_bleu`` does; the columns are those of `bleu_value`."""
    hypothesis, reference = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + BLEU_ORDER], sums[:, 2 + BLEU_ORDER :]
    with np.errstate(divide="ignore"):
        logs = np.log(matches) - np.log(np.maximum(totals, 1))
    penalty = np.where(hypothesis > reference, 1.0, np.exp(1 - reference / np.maximum(hypothesis, 1)))
    value: Floats = 100 * penalty * np.exp(logs.mean(axis=1))
    return value


def chrf_value(sums: Floats) -> Floats:
    """Compute chrF (R,) as sacreBLEU does without epsilon smoothing.

    The columns of ``sums`` (R, 18) are hypothesis n-grams, reference n-grams and matches of each n-gram order.
    """
    per_order = sums.reshape(len(sums), -1, 3)
    hypothesis, reference, matches = per_order[:, :, 0], per_order[:, :, 1], per_order[:, :, 2]
    counted = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(counted.sum(axis=1), 1)
    precision = np.where(counted, matches / np.maximum(hypothesis, 1), 0).sum(axis=1) / orders
    recall = np.where(counted, matches / np.maximum(reference, 1), 0).sum(axis=1) / orders
    weight = CHRF_BETA**2
    denominator = weight * precision + recall
    f_score = (1 + weight) * precision * recall / np.where(denominator > 0, denominator, 1)
    value: Floats = 100 * np.where(denominator > 0, f_score, 0.0)
    return value


VALUES: dict[str, Callable[[Floats], Floats]] = {
    function.__name__: function for function in (mean_value, rate_value, bleu_value, nltk_bleu_value, chrf_value)
}
"""Name -> function of `Parts`, for counts in a file."""
