"""Name columns, modes and numbers as the report shows them."""

from __future__ import annotations

from ossicle_lab.study.interval import SET_SIGN

LOWER_IS_BETTER = ("wer", "cer")
MODE_TITLES = {
    "steps": "the same number of steps in stage 1",
    "compute": "the same time in stage 1",
    "chosen": "the length of stage 1 that scored best on the development split",
}
_TITLES = {
    "asr:wer": "Recognition, WER",
    "qa:f1": "Questions, F1",
    "qa:em": "Questions, exact",
    "normalised": "Normalised average",
    "unseen": "Unseen tasks, mean",
}
_LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian"}
_METRICS = {"bleu": "BLEU", "em": "exact", "f1": "F1", "wer": "WER"}


def column_title(column: str) -> str:
    """Return the title of a column, such as ``German, BLEU`` for ``st/de:bleu``, with the test set if it has one."""
    if column in _TITLES:
        return _TITLES[column]
    task, _, metric = column.partition(":")
    if SET_SIGN in task:
        task, _, name = task.partition(SET_SIGN)
        return column_title(f"{task}:{metric}").replace(",", f" ({name}),")
    kind, _, language = task.partition("/")
    what = _LANGUAGES.get(language, language) if kind == "st" else task.replace("_", " ").capitalize()
    return f"{what}, {_METRICS.get(metric, metric)}"


def lower_is_better(column: str) -> bool:
    """Return True if the column's metric is an error rate."""
    return column.rpartition(":")[2] in LOWER_IS_BETTER


def number(value: float) -> str:
    """Return ``value`` with one decimal and a true minus sign, such as ``−1.2``."""
    return f"{value:.1f}".replace("-", "−")


def percent(fraction: float) -> str:
    """Return a share as a percentage, such as ``10%`` for 0.1."""
    return f"{100 * fraction:.3g}%"
