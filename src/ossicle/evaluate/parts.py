"""Scores as functions of sums over utterances, so that a resample is one matrix product.

Shapes: N utterances, K counts that a metric keeps of each, R resamples. Every metric here depends on its utterances
only through the sum of their K counts (errors and reference words, n-grams and matches, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF

Floats = NDArray[np.float64]

BLEU_ORDER = 4
CHRF_BETA = 2


@dataclass(frozen=True)
class Parts:
    """What a score is made of."""

    counts: Floats  # (N, K)
    value_of: Callable[[Floats], Floats]
    """Sums of counts (R, K) -> values (R,), 0-100."""

    @property
    def value(self) -> float:
        """The score of all utterances."""
        return float(self.value_of(self.counts.sum(axis=0)[None])[0])


@dataclass(frozen=True)
class Score:
    """A percentage, and the settings that make it comparable with another one."""

    value: float
    signature: str
    parts: Parts | None = field(default=None, compare=False, repr=False)
    """What the value is made of, utterance by utterance; without it a score gets no interval."""


References = Sequence[str | Sequence[str]]
Metric = Callable[[Sequence[str], References, str | None], Score]


def score_of(parts: Parts, signature: str) -> Score:
    """The score that ``parts`` sum to."""
    return Score(parts.value, signature, parts)


def pairs(hypotheses: Sequence[str], references: References) -> list[tuple[str, list[str]]]:
    """Each hypothesis with its list of references, checked once for every metric.

    Raises:
        ValueError: nothing to score, or an utterance without a reference.
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


def mean_parts(values: Sequence[float]) -> Parts:
    """The mean of one value per utterance, 0-100 each."""
    column = np.asarray(values, dtype=float)
    return Parts(np.stack([column, np.ones_like(column)], axis=1), mean_value)


def rate_parts(errors: Sequence[int], lengths: Sequence[int]) -> Parts:
    """All errors over the length of all references, in percent; over a length of 0 it is 100, or 0 without errors."""
    return Parts(np.stack([np.asarray(errors, float), np.asarray(lengths, float)], axis=1), rate_value)


def bleu_parts(metric: BLEU, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """BLEU-4 with exponential smoothing, of the n-grams that sacreBLEU counts; K = 10."""
    return Parts(_sacrebleu_counts(metric, hypotheses, references), bleu_value)


def chrf_parts(metric: CHRF, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """chrF2 of the character n-grams that sacreBLEU counts, against the best reference of each; K = 18."""
    return Parts(_sacrebleu_counts(metric, hypotheses, references), _chrf)


def _sacrebleu_counts(metric: BLEU | CHRF, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    most = max(map(len, references))
    # sacreBLEU wants the k-th references of all utterances together, None where an utterance has fewer
    streams = [[accepted[k] if k < len(accepted) else None for accepted in references] for k in range(most)]
    # named private, but what sacreBLEU's own significance tests are built on; a test compares with its command line
    return np.asarray(metric._extract_corpus_statistics(list(hypotheses), streams), dtype=float)


def mean_value(sums: Floats) -> Floats:
    """Columns: sum of the values, how many."""
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def rate_value(sums: Floats) -> Floats:
    """Columns: errors, length of the references."""
    errors, length = sums[:, 0], sums[:, 1]
    empty = np.where(errors > 0, 100.0, 0.0)
    return np.where(length > 0, 100 * errors / np.maximum(length, 1), empty)


def bleu_value(sums: Floats) -> Floats:
    """Columns: hypothesis length, reference length, 4 matches, 4 totals. As sacreBLEU, `BLEU.compute_bleu`."""
    said, wanted = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + BLEU_ORDER], sums[:, 2 + BLEU_ORDER :]
    penalty = np.where(said < wanted, np.exp(1 - wanted / np.maximum(said, 1)), 1.0)
    zeros_so_far = np.cumsum(matches == 0, axis=1)
    smoothed = np.where(matches > 0, matches, 0.5**zeros_so_far)  # the k-th order without a match counts 1 / 2**k
    with np.errstate(divide="ignore"):
        logs = np.log(smoothed) - np.log(totals)
    scored = (totals.min(axis=1) > 0) & (matches.max(axis=1) > 0)  # (R,)
    logs = np.where(np.expand_dims(scored, 1), logs, -np.inf)
    return np.minimum(100 * penalty * np.exp(logs.mean(axis=1)), 100.0)


def _chrf(sums: Floats) -> Floats:
    """Columns: per n-gram order hypothesis, reference, matches. As sacreBLEU, without epsilon smoothing."""
    per_order = sums.reshape(len(sums), -1, 3)
    said, wanted, matches = per_order[:, :, 0], per_order[:, :, 1], per_order[:, :, 2]
    counted = (said > 0) & (wanted > 0)
    orders = np.maximum(counted.sum(axis=1), 1)
    precision = np.where(counted, matches / np.maximum(said, 1), 0).sum(axis=1) / orders
    recall = np.where(counted, matches / np.maximum(wanted, 1), 0).sum(axis=1) / orders
    weight = CHRF_BETA**2
    below = weight * precision + recall
    return 100 * np.where(below > 0, (1 + weight) * precision * recall / np.where(below > 0, below, 1), 0.0)
