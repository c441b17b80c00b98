"""Score the task ``meta``, the description of a recording: accuracy of its attributes, and a constant baseline.

An answer is a comma-separated list of values in the order of `ATTRIBUTES`, or of ``name: value`` in any order. Values
are compared after `normalise_basic`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ossicle.corpora import DESCRIPTION_ATTRIBUTES as ATTRIBUTES
from ossicle.evaluate.normalise import normalise_basic
from ossicle.evaluate.parts import Metric, References, Score, all_texts, pairs, rate_parts, score_of

_SIGNATURE = "norm:basic|refs:any"


def attributes(text: str) -> dict[str, str]:
    """Return attribute -> value of an answer.

    A value without a name gets the name of its position, or ``attribute 8`` and so on beyond `ATTRIBUTES`. The order is
    part of the answer: if a value is missing, those after it count as wrong.
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
    """Compute the percentage of correct attributes, over all attributes of the references.

    A missing attribute is wrong, and an additional one is ignored.
    """
    said = [attributes(hypothesis) for hypothesis in hypotheses]
    return _accuracy(said, references, hypotheses, _SIGNATURE)


def majority(
    hypotheses: Sequence[str],
    references: References,
    language: str | None = None,
    *,
    constant: dict[str, str] | None = None,
) -> Score:
    """Compute the `accuracy` of always answering the most frequent value of each attribute.

    ``constant`` has these values. By default they are counted in these references, so no constant answer scores higher.
    The hypotheses are not used.
    """
    constant = most_frequent(references) if constant is None else constant
    return _accuracy([constant] * len(hypotheses), references, hypotheses, f"{_SIGNATURE}|constant")


def attribute_metrics(references: References) -> dict[str, Metric]:
    """Return the metrics ``accuracy/NAME`` and ``majority/NAME`` for each attribute of the references."""
    names = dict.fromkeys(name for text in all_texts(references) for name in attributes(text))
    constant = most_frequent(references)
    return {
        f"{kind}/{name}": _attribute_metric(name, constant if kind == "majority" else None)
        for name in names
        for kind in ("accuracy", "majority")
    }


def _attribute_metric(name: str, constant: dict[str, str] | None) -> Metric:
    def metric(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
        said = [attributes(text) if constant is None else constant for text in hypotheses]
        signature = _SIGNATURE if constant is None else f"{_SIGNATURE}|constant"
        return _accuracy(said, references, hypotheses, signature, name)

    return metric


def _accuracy(
    said: Sequence[dict[str, str]],
    references: References,
    hypotheses: Sequence[str],
    signature: str,
    only: str | None = None,
) -> Score:
    """Return the percentage of correct attributes in ``said``; ``only`` restricts it to the attribute of one name.

    An attribute is correct if any reference of the utterance has the same value.
    """
    correct, counted = [], []
    for mine, (_, accepted) in zip(said, pairs(hypotheses, references), strict=True):
        wanted = [attributes(text) for text in accepted]
        names = {name for each in wanted for name in each if only in (None, name)}
        correct.append(sum(any(name in each and mine.get(name) == each[name] for each in wanted) for name in names))
        counted.append(len(names))
    return score_of(rate_parts(correct, counted), signature)


def most_frequent(references: References) -> dict[str, str]:
    """Return the most frequent value of each attribute in the first references."""
    values: dict[str, Counter[str]] = {}
    for accepted in references:
        for name, value in attributes(accepted if isinstance(accepted, str) else accepted[0]).items():
            values.setdefault(name, Counter())[value] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in values.items()}
