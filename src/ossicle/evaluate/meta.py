"""Task ``meta``, the description of a recording: how many of its attributes are right, beside always saying the same.

An answer is a list separated by commas: values in the order of `ATTRIBUTES`, or ``name: value`` in any order. Values
are compared after `normalise_basic`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ossicle.corpora import DESCRIPTION_ATTRIBUTES as ATTRIBUTES
from ossicle.evaluate.normalise import normalise_basic
from ossicle.evaluate.parts import Metric, References, Score, pairs, rate_parts, score_of

_SIGNATURE = "norm:basic|refs:any"


def attributes(text: str) -> dict[str, str]:
    """Attribute -> value of an answer. A value without a name is named by its place, from ``attribute 8`` on by number.

    A value left out shifts those after it, which are then wrong: the order is part of the answer.
    """
    found = {}
    for place, piece in enumerate(text.split(",")):
        name, colon, value = piece.partition(":")
        if colon:
            found[normalise_basic(name).replace(" ", "_")] = normalise_basic(value)
        elif piece.strip():
            found[ATTRIBUTES[place] if place < len(ATTRIBUTES) else f"attribute {place + 1}"] = normalise_basic(piece)
    return found


def accuracy(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Share of all attributes of the references that are right; one left out is wrong, one too many is ignored."""
    said = [attributes(hypothesis) for hypothesis in hypotheses]
    return _accuracy(said, references, hypotheses, _SIGNATURE)


def majority(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """What `accuracy` gives to the most frequent value of each attribute, whatever the hypotheses say.

    The values are those of the references scored here, so that no constant answer does better on this file.
    """
    constant = _most_frequent(references)
    return _accuracy([constant] * len(hypotheses), references, hypotheses, f"{_SIGNATURE}|constant")


def attribute_metrics(references: References) -> dict[str, Metric]:
    """``accuracy/NAME`` and ``majority/NAME`` for each attribute that the references name."""
    names = dict.fromkeys(name for accepted in references for text in _list(accepted) for name in attributes(text))
    return {f"{kind}/{name}": _only(name, kind == "majority") for name in names for kind in ("accuracy", "majority")}


def _only(name: str, constant: bool) -> Metric:
    def metric(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
        said = [_most_frequent(references)] * len(hypotheses) if constant else [attributes(h) for h in hypotheses]
        return _accuracy(said, references, hypotheses, f"{_SIGNATURE}|constant" if constant else _SIGNATURE, name)

    return metric


def _accuracy(
    said: Sequence[dict[str, str]],
    references: References,
    hypotheses: Sequence[str],
    signature: str,
    only: str | None = None,
) -> Score:
    """An attribute is right if any of the utterance's references gives it this value."""
    right, counted = [], []
    for mine, (_, accepted) in zip(said, pairs(hypotheses, references), strict=True):
        wanted = [attributes(text) for text in accepted]
        names = {name for each in wanted for name in each if only in (None, name)}
        right.append(sum(any(name in each and mine.get(name) == each[name] for each in wanted) for name in names))
        counted.append(len(names))
    return score_of(rate_parts(right, counted), signature)


def _most_frequent(references: References) -> dict[str, str]:
    values: dict[str, Counter[str]] = {}
    for accepted in references:
        for name, value in attributes(_list(accepted)[0]).items():
            values.setdefault(name, Counter())[value] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in values.items()}


def _list(accepted: str | Sequence[str]) -> Sequence[str]:
    return [accepted] if isinstance(accepted, str) else accepted
