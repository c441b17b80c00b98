"""Compute the scores of the paper's code as it computes them, for comparison with its published figures.

They differ from the metrics in `ossicle.evaluate.metrics` in these points:

- ``official_wer`` is the mean of the utterances' rates, after `normalise_official`, which deletes punctuation.
- ``official_bleu`` is BLEU-4 without smoothing over words after `normalise_official`, as NLTK's ``corpus_bleu``.
- ``official_sacrebleu`` is sacreBLEU with the tokenizer 13a for every language.
- ``official_em`` and ``official_f1`` are those of SQuAD v1.1, where an empty answer never has an F1 above 0.

The code rounds to two digits (sacreBLEU to four); the values here are not rounded. Unlike all other metrics, these do
not apply `ossicle.evaluate.normalise.clean` to the texts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import jiwer
import numpy as np
from sacrebleu.metrics import BLEU

from ossicle.evaluate.normalise import normalise_official
from ossicle.evaluate.parts import (
    BLEU_ORDER,
    Metric,
    Parts,
    References,
    Score,
    bleu_parts,
    mean_parts,
    nltk_bleu_value,
    pairs,
    score_of,
)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SQUAD_SIGNATURE = "norm:squad-1.1|refs:max|official"


def official_wer(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute the mean of the utterances' word error rates after `normalise_official`.

    The code fails for an empty reference. Here the rate is then 0 for an empty hypothesis and 100 otherwise.
    """
    rates = [
        100 * min(_word_error_rate(normalise_official(hypothesis), normalise_official(text)) for text in accepted)
        for hypothesis, accepted in pairs(hypotheses, references)
    ]
    return score_of(mean_parts(rates), f"level:utterance mean|norm:official|jiwer:{version('jiwer')}")


def official_bleu(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute BLEU-4 without smoothing over the words after `normalise_official`, as NLTK's ``corpus_bleu`` does.

    The score of a corpus without a matching n-gram of any of the four orders is 0.
    """
    counts = [
        _nltk_counts(normalise_official(hypothesis).split(), [normalise_official(text).split() for text in accepted])
        for hypothesis, accepted in pairs(hypotheses, references)
    ]
    return score_of(Parts(np.array(counts, dtype=float), nltk_bleu_value), "norm:official|smooth:none|tok:words|nltk")


def official_sacrebleu(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute BLEU with sacreBLEU and the tokenizer 13a, whatever the language."""
    metric, both = BLEU(), pairs(hypotheses, references)
    parts = bleu_parts(metric, [hypothesis for hypothesis, _ in both], [accepted for _, accepted in both])
    return score_of(parts, str(metric.get_signature()))


def official_em(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute SQuAD's exact match."""
    return score_of(_mean_of_best(lambda one, other: float(one == other), hypotheses, references), _SQUAD_SIGNATURE)


def official_f1(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute SQuAD's token F1, which is 0 without a common token, even if answer and reference are empty."""
    return score_of(_mean_of_best(_token_f1, hypotheses, references), _SQUAD_SIGNATURE)


OFFICIAL: dict[str, Mapping[str, Metric]] = {
    "asr": {"official_wer": official_wer},
    "st": {"official_bleu": official_bleu, "official_sacrebleu": official_sacrebleu},
    "qa": {"official_em": official_em, "official_f1": official_f1},
    "voice": {"official_em": official_em},
    "meta": {
        "official_wer": official_wer,
        "official_bleu": official_bleu,
        "official_sacrebleu": official_sacrebleu,
    },
}
"""Task -> metric name -> metric of the paper's code. Other tasks have those of ``qa``."""


def _word_error_rate(hypothesis: str, reference: str) -> float:
    if not reference.strip():
        return float(bool(hypothesis.strip()))
    return float(jiwer.wer(reference, hypothesis))


def _nltk_counts(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """Return the lengths of hypothesis and nearest reference, the matches and the n-grams of each order; K = 10."""
    nearest = min((len(reference) for reference in references), key=lambda n: (abs(n - len(hypothesis)), n))
    matches, totals = [], []
    for order in range(1, BLEU_ORDER + 1):
        said = _ngrams(hypothesis, order)
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            allowed |= _ngrams(reference, order)
        matches.append((said & allowed).total())
        totals.append(max(1, said.total()))  # NLTK counts one n-gram for a sentence that is too short for any
    return [len(hypothesis), nearest, *matches, *totals]


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _normalise_squad(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def _token_f1(hypothesis: str, reference: str) -> float:
    answer, expected = hypothesis.split(), reference.split()
    shared = (Counter(answer) & Counter(expected)).total()
    return 2 * shared / (len(answer) + len(expected)) if shared else 0.0


def _mean_of_best(similarity: Callable[[str, str], float], hypotheses: Sequence[str], references: References) -> Parts:
    best = [
        100 * max(similarity(_normalise_squad(hypothesis), _normalise_squad(text)) for text in accepted)
        for hypothesis, accepted in pairs(hypotheses, references)
    ]
    return mean_parts(best)
