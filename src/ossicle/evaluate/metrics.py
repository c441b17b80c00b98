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
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jiwer
from sacrebleu.metrics import BLEU, CHRF


@dataclass(frozen=True)
class Score:
    """A percentage, and the settings that make it comparable with another one."""

    value: float
    signature: str


References = Sequence[str | Sequence[str]]
Metric = Callable[[Sequence[str], References, str | None], Score]


# Word and character error rate -------------------------------------------------------------------------------------


def normalise_basic(text: str) -> str:
    """Lower-case, NFKC, no punctuation or symbols, single spaces.

    An apostrophe between two letters stays ("don't"); any other mark becomes a space ("well-known" is two words).
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    padded = f" {text} "
    spoken = (
        char if _is_spoken(before, char, after) else " "
        for before, char, after in zip(padded, padded[1:], padded[2:], strict=False)
    )
    return " ".join("".join(spoken).split())


def wer(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Corpus-level word error rate: all errors over all reference words, the convention of the field.

    An empty hypothesis counts every reference word as deleted; the words said against an empty reference count as
    insertions. With several references, each utterance is scored against the one it is nearest to.
    """
    return Score(_corpus_rate(_edits(hypotheses, references, jiwer.process_words)), _error_signature("corpus"))


def wer_utterance_mean(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Mean of the utterances' word error rates (what the paper's code reports): short utterances weigh more.

    An empty reference scores 0 if the hypothesis is empty too, else 100.
    """
    rates = [edits.rate for edits in _edits(hypotheses, references, jiwer.process_words)]
    return Score(sum(rates) / len(rates), _error_signature("utterance mean"))


def cer(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Corpus-level character error rate, spaces included; empty strings count as in `wer`."""
    return Score(_corpus_rate(_edits(hypotheses, references, jiwer.process_characters)), _error_signature("corpus"))


@dataclass(frozen=True)
class _Edits:
    errors: int
    length: int  # words or characters of the reference

    @property
    def rate(self) -> float:
        if self.length == 0:
            return 100.0 if self.errors else 0.0
        return 100 * self.errors / self.length


def _is_spoken(before: str, char: str, after: str) -> bool:
    if char == "'":
        return before.isalnum() and after.isalnum()
    return unicodedata.category(char)[0] not in "PS"


def _error_signature(level: str) -> str:
    return f"level:{level}|norm:basic|jiwer:{version('jiwer')}"


def _edits(hypotheses: Sequence[str], references: References, align: Callable) -> list[_Edits]:
    """Per utterance, the edits to the nearest reference, under one of jiwer's alignments."""

    def against(reference: str, hypothesis: str) -> _Edits:
        if not reference:  # jiwer 3 refuses it
            return _Edits(len(hypothesis.split() if align is jiwer.process_words else hypothesis), 0)
        found = align(reference, hypothesis)
        deleted_or_replaced = found.substitutions + found.deletions
        return _Edits(deleted_or_replaced + found.insertions, found.hits + deleted_or_replaced)

    return [
        min(
            (against(normalise_basic(reference), normalise_basic(hypothesis)) for reference in accepted),
            key=lambda edits: edits.rate,
        )
        for hypothesis, accepted in _pairs(hypotheses, references)
    ]


def _corpus_rate(edits: Sequence[_Edits]) -> float:
    return _Edits(sum(e.errors for e in edits), sum(e.length for e in edits)).rate


# Translation -------------------------------------------------------------------------------------------------------


def bleu(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """sacreBLEU, case and punctuation kept; tokenizer 13a, or sacreBLEU's own for ``language`` zh, ja and ko.

    An empty hypothesis only shortens the output (brevity penalty). A corpus without one matching 4-gram is near 0.
    """
    return _sacrebleu(BLEU(trg_lang=language or ""), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """chrF2: character n-gram F-score, kinder than BLEU to right stems with a wrong ending."""
    return _sacrebleu(CHRF(), hypotheses, references)


def _sacrebleu(metric: BLEU | CHRF, hypotheses: Sequence[str], references: References) -> Score:
    pairs = _pairs(hypotheses, references)
    most = max(len(accepted) for _, accepted in pairs)
    # sacreBLEU wants the k-th references of all utterances together, None where an utterance has fewer
    streams: list[Any] = [[accepted[k] if k < len(accepted) else None for _, accepted in pairs] for k in range(most)]
    score = metric.corpus_score([hypothesis for hypothesis, _ in pairs], streams).score
    return Score(min(score, 100.0), str(metric.get_signature()))  # rounding can give 100.00000000000004


# Question answering ------------------------------------------------------------------------------------------------

_SQUAD_SIGNATURE = "norm:squad-1.1|refs:max"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_squad(text: str) -> str:
    """SQuAD v1.1: lower-case, ASCII punctuation deleted, the articles a, an, the deleted, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def exact_match(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Share of answers equal to one of their references after `normalise_squad`."""
    return Score(_mean_of_best(_same, hypotheses, references), _SQUAD_SIGNATURE)


def f1(hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
    """Mean over utterances of the best token F1 with a reference, after `normalise_squad`.

    An empty answer scores 0, unless a reference is empty after normalisation too: then 100, so that F1 is never
    below exact match (SQuAD v2's rule; v1.1 has no such answers).
    """
    return Score(_mean_of_best(_token_f1, hypotheses, references), _SQUAD_SIGNATURE)


def _same(hypothesis: str, reference: str) -> float:
    return float(hypothesis == reference)


def _token_f1(hypothesis: str, reference: str) -> float:
    said, wanted = hypothesis.split(), reference.split()
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def _mean_of_best(similarity: Callable[[str, str], float], hypotheses: Sequence[str], references: References) -> float:
    best = [
        max(similarity(normalise_squad(hypothesis), normalise_squad(reference)) for reference in accepted)
        for hypothesis, accepted in _pairs(hypotheses, references)
    ]
    return 100 * sum(best) / len(best)


# Which metrics a task gets ------------------------------------------------------------------------------------------

METRICS: dict[str, Mapping[str, Metric]] = {
    "asr": {"wer": wer, "wer_utterance_mean": wer_utterance_mean, "cer": cer},
    "st": {"bleu": bleu, "chrf": chrf},
    "qa": {"em": exact_match, "f1": f1},
}
"""Task kind -> metric name -> metric. A task not named here is scored as question answering."""


def metrics_for(task: str | None) -> Mapping[str, Metric]:
    """The metrics of a manifest's ``task``; no task means plain speech recognition."""
    return METRICS.get(task or "asr", METRICS["qa"])


def _pairs(hypotheses: Sequence[str], references: References) -> list[tuple[str, list[str]]]:
    """Each hypothesis with its list of references, checked once for every metric."""
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references: give one entry for each")
    if not hypotheses:
        raise ValueError("nothing to score: the list of hypotheses is empty")
    pairs = [
        (hypothesis, [accepted] if isinstance(accepted, str) else list(accepted))
        for hypothesis, accepted in zip(hypotheses, references, strict=True)
    ]
    for index, (_, accepted) in enumerate(pairs):
        if not accepted:
            raise ValueError(f"utterance {index} has no reference: give at least one string, even an empty one")
    return pairs
