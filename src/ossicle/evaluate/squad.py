"""Compute SQuAD's exact match and token F1, extended to punctuation and scripts other than those of English."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from ossicle.evaluate.normalise import clean
from ossicle.evaluate.parts import Parts, References, Score, mean_parts, pairs, score_of
from ossicle.languages import split_unspaced

_SQUAD_SIGNATURE = "norm:squad-1.1|refs:max"
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_squad(text: str) -> str:
    """Normalise as SQuAD v1.1: lower case, no punctuation, no articles (a, an, the), single spaces.

    SQuAD removes ASCII punctuation only. Here that of other scripts and typographic quotes are removed as well.
    """
    kept = (char for char in clean(text).lower() if not _is_punctuation(char))
    return " ".join(_ARTICLES.sub(" ", "".join(kept)).split())


def exact_match(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute the percentage of answers that equal one of their references after `normalise_squad`.

    Spaces beside characters of scripts without spaces between words, such as Chinese, do not count.
    """
    return score_of(_mean_of_best(_same, hypotheses, references), _SQUAD_SIGNATURE)


def f1(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Compute the mean over utterances of the best token F1 with a reference, after `normalise_squad`.

    Tokens are words, and single characters in scripts without spaces between words. An empty answer scores 0, or 100
    if a reference is empty after normalisation too. This is the rule of SQuAD v2, and it keeps F1 from being below
    exact match; v1.1 has no such answers.
    """
    return score_of(_mean_of_best(_token_f1, hypotheses, references), _SQUAD_SIGNATURE)


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def _same(hypothesis: str, reference: str) -> float:
    return float(hypothesis == reference)


def _token_f1(hypothesis: str, reference: str) -> float:
    answer, expected = hypothesis.split(), reference.split()
    if not answer or not expected:
        return float(answer == expected)
    shared = sum((Counter(answer) & Counter(expected)).values())
    return 2 * shared / (len(answer) + len(expected))


def _mean_of_best(similarity: Callable[[str, str], float], hypotheses: Sequence[str], references: References) -> Parts:
    def read(text: str) -> str:
        return " ".join(split_unspaced(normalise_squad(text)).split())

    best = [
        100 * max(similarity(read(hypothesis), read(reference)) for reference in accepted)
        for hypothesis, accepted in pairs(hypotheses, references)
    ]
    return mean_parts(best)
