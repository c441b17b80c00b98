"""Compute the metrics of each task: word and character error rates, BLEU, chrF, and SQuAD's exact match and F1.

All metrics have the form ``metric(hypotheses, references, language=None) -> Score``. ``references[i]`` is one string or
a list of accepted strings. ``language`` is the language tag of the text, such as ``zh`` or ``zh-CN``. All values are
percentages, 0-100, but error rates can exceed 100. All metrics compare texts after `ossicle.evaluate.normalise.clean`,
so that composed and decomposed letters are equal. The scorers of the paper's code are in `ossicle.evaluate.official`.

Empty strings are scored, not skipped. Each metric documents the effect of an empty hypothesis or reference. All raise
`ValueError` if there are no utterances, or if an utterance has no reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF

from ossicle.errors import MissingPackageError
from ossicle.evaluate import meta
from ossicle.evaluate.error_rates import cer, counts_characters, wer, wer_utterance_mean
from ossicle.evaluate.hypotheses import task_name
from ossicle.evaluate.normalise import clean, normalise_basic, normaliser
from ossicle.evaluate.official import OFFICIAL
from ossicle.evaluate.open_asr import OPEN_ASR, with_open_asr
from ossicle.evaluate.parts import Metric, References, Score, all_texts, bleu_parts, chrf_parts, pairs, score_of
from ossicle.evaluate.squad import exact_match, f1, normalise_squad
from ossicle.languages import CHINESE, WITHOUT_SPACES, language_code, unspaced_script

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


# Translation -------------------------------------------------------------------------------------------------------


def bleu(
    hypotheses: Sequence[str], references: References, language: str | None = None, *, tokenizer: str | None = None
) -> Score:
    """Compute BLEU with sacreBLEU, with case and punctuation.

    ``tokenizer`` is one of sacreBLEU's; `bleu_tokenizer` chooses it by default. An empty hypothesis only shortens the
    output (brevity penalty). The score of a corpus without a matching 4-gram is near 0.

    Raises:
        MissingPackageError: the tokenizer of Japanese or Korean is not installed.
    """
    said, right = _columns(hypotheses, references)
    metric = _bleu(tokenizer or bleu_tokenizer(language, references), language)
    return score_of(bleu_parts(metric, said, right), str(metric.get_signature()))


def bleu_tokenizer(language: str | None, references: References = ()) -> str:
    """Return sacreBLEU's tokenizer for a language tag.

    It is ``zh`` for the Chinese languages, ``ja-mecab`` for Japanese, ``ko-mecab`` for Korean, and ``char`` for Thai,
    Lao, Khmer and Burmese, which sacreBLEU cannot split into words. All other languages have ``13a``, unless most
    letters of ``references`` are in a script without spaces between words: then it is ``zh`` for Chinese characters and
    ``char`` for others.
    """
    code = language_code(language)
    if code in CHINESE:
        return "zh"
    if code in WITHOUT_SPACES - {"ja"}:
        return "char"
    if code in ("ja", "ko"):
        return f"{code}-mecab"
    # The language may be missing or wrong, and the script is certain.
    return {"han": "zh", "other": "char"}.get(unspaced_script(map(clean, all_texts(references))) or "", "13a")


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
_BY_WORDS = (wer, wer_utterance_mean)


def metrics_for(
    task: str | None,
    *,
    normalise: str = "basic",
    language: str | None = None,
    tables: Path | None = None,
    official: bool = False,
    references: References | None = None,
) -> Mapping[str, Metric]:
    """Return the metrics of a task by name; None is speech recognition.

    With ``references``, everything that a metric reads from all of them is fixed: the script, and the most frequent
    values. The counts of a line then depend on this line alone, so that the lines can be divided.

    Args:
        task: name of the task.
        normalise: normalisation before word and character error rates, see `normaliser`. ``open-asr`` also replaces the
            word error rate by the leaderboard's, see `ossicle.evaluate.open_asr`.
        language: language of the texts.
        tables: ``normalizer.json`` of a Whisper checkpoint for ``whisper``, and a clone of the leaderboard's repository
            for ``open-asr``.
        official: add the scorers of the paper's code.
        references: accepted answers of all lines. Texts of a script without spaces between words have the character
            error rate in place of the word error rate, also where ``language`` does not say so
            (`ossicle.evaluate.error_rates.counts_characters`).

    Raises as `normaliser` and `ossicle.evaluate.open_asr.OpenASR.load`.
    """
    task = task_name(task)
    found = METRICS.get(task, METRICS["qa"])
    if counts_characters(language) or (references and unspaced_script(all_texts(references))):
        found = _by_characters(found)
    if normalise == OPEN_ASR:
        found = with_open_asr(found, tables)
    elif normalise != "basic":
        chosen = normaliser(normalise, language, tables)
        found = {
            name: partial(metric, normalise=chosen) if metric in (*_BY_WORDS, cer) else metric
            for name, metric in found.items()
        }
    if official:
        found = {**found, **OFFICIAL.get(task, OFFICIAL["qa"])}
    return found if references is None else _fixed(task, found, language, references)


def _fixed(
    task: str, metrics: Mapping[str, Metric], language: str | None, references: References
) -> Mapping[str, Metric]:
    """Return ``metrics`` without a choice that depends on all ``references``."""
    fixed = dict(metrics)
    for name, metric in metrics.items():
        if metric is bleu:
            fixed[name] = partial(bleu, tokenizer=bleu_tokenizer(language, references))
        elif metric is meta.majority:
            fixed[name] = partial(meta.majority, constant=meta.most_frequent(references))
    return fixed | meta.attribute_metrics(references) if task == "meta" else fixed


def _by_characters(metrics: Mapping[str, Metric]) -> Mapping[str, Metric]:
    """Return ``metrics`` by name with the character error rate in place of those that count words."""
    if not any(metric in _BY_WORDS for metric in metrics.values()):
        return metrics
    return {"cer": cer, **{name: metric for name, metric in metrics.items() if metric not in _BY_WORDS}}
