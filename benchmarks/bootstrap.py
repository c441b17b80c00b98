"""Time the statistics of `ossicle score` on synthetic translations, beside sacreBLEU's own bootstrap.

Usage: python benchmarks/bootstrap.py [UTTERANCES] [RESAMPLES]

Ossicle counts once and computes all intervals from the counts. sacreBLEU computes every resample in Python.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from sacrebleu.metrics import BLEU

from ossicle.evaluate.bootstrap import intervals, paired
from ossicle.evaluate.metrics import bleu, chrf, f1, wer


def main(utterances: int = 10_000, resamples: int = 1000) -> None:
    """Print the table of times."""
    chance = random.Random(0)
    words = [f"word{number}" for number in range(1000)]
    references = [" ".join(chance.choices(words, k=chance.randint(5, 25))) for _ in range(utterances)]
    said = [" ".join(w for w in text.split() if chance.random() > 0.2) for text in references]

    table = Table("step", "seconds")
    parts = []
    for metric in (wer, bleu, chrf, f1):
        score, seconds = _timed(lambda metric=metric: metric(said, references))
        parts.append(score.parts)
        table.add_row(f"{metric.__name__} of {utterances} utterances", f"{seconds:.2f}")
    units = range(utterances)
    _, seconds = _timed(lambda: intervals(parts, units, resamples=resamples))
    table.add_row(f"intervals of the 4, {resamples} resamples", f"{seconds:.2f}")
    _, seconds = _timed(lambda: paired(parts, parts, units, resamples=resamples))
    table.add_row(f"paired differences of the 4, {resamples} resamples", f"{seconds:.2f}")
    _, seconds = _timed(lambda: BLEU().corpus_score(said, [references], n_bootstrap=resamples))
    table.add_row(f"sacreBLEU: bleu and its interval, {resamples} resamples", f"{seconds:.2f}")
    Console().print(table)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
