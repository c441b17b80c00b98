"""Score the tests of a real run and print one table: speech, the same LLM on the transcript, and Whisper's decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.evaluate.hypotheses import Hypothesis, read_hypotheses, task_name
from ossicle.evaluate.metrics import bleu, f1, normalise_squad, wer
from ossicle.evaluate.normalise import normaliser
from ossicle.evaluate.parts import Score
from ossicle.evaluate.tables import print_whole

FLOOR = 10.0
"""Text score in percent below which a task is marked: the LLM itself cannot do it, so that speech cannot be judged."""


def word_accuracy(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Return 100 minus the word error rate, at least 0. Case and punctuation count."""
    rate = wer(hypotheses, references, normalise=normaliser("none"))
    return Score(max(0.0, 100.0 - rate.value), f"100 - wer|{rate.signature}")


def contained(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Return the percentage of answers that contain an accepted answer.

    Small LLMs answer in whole sentences, whose F1 is low even where they are right.
    """
    found = [
        any(f" {normalise_squad(right)} " in f" {normalise_squad(said)} " for right in accepted)
        for said, accepted in zip(hypotheses, references, strict=True)
    ]
    return Score(100.0 * sum(found) / len(found), "norm:squad-1.1|contains")


def whisper_wer(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Return the word error rate after Whisper's English normalisation, for which "Mr. Hale" is "mister hale"."""
    return wer(hypotheses, references, normalise=normaliser("whisper", "en"))


Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], Score]
QUESTION: tuple[tuple[str, Metric], ...] = (("F1 ↑", f1), ("answer contained ↑", contained))
METRICS: Mapping[str, tuple[tuple[str, Metric], ...]] = {
    "asr": (("WER ↓", wer), ("WER, Whisper's normalisation ↓", whisper_wer)),
    "st": (("BLEU ↑", bleu),),
    "capitals": (("word accuracy, with case ↑", word_accuracy),),
    "count": QUESTION,
}
"""Names and metrics of each task; others are scored as questions."""


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    test: str
    """Name of the test manifest."""
    task: str
    metric: str
    n: int
    """Number of lines of the test."""
    speech: float
    """Score of the model that hears the speech."""
    text: float | None = None
    """Score of the same LLM that reads the transcript; None where nothing was decoded."""
    whisper: float | None = None
    """Score of Whisper's own decoder, or of the LLM that reads its transcript; None for an encoder without one."""


def entries(test: str, speech: Path, *, text: Path | None = None, whisper: Path | None = None) -> list[Entry]:
    """Return an entry for each task in the hypotheses ``speech`` of the manifest named ``test``.

    Args:
        test: name of the test.
        speech: hypotheses of the model that hears.
        text: hypotheses of the LLM that reads the transcripts.
        whisper: hypotheses of Whisper's own decoder, or of a cascade with it.

    Raises:
        HypothesesError: a file is missing or invalid.
    """
    others = {name: scores(path) for name, path in (("text", text), ("whisper", whisper)) if path is not None}
    found = []
    for (task, metric), (n, value) in scores(speech).items():
        beside = {name: known[task, metric][1] for name, known in others.items() if (task, metric) in known}
        found.append(Entry(test, task, metric, n, value, **beside))
    return found


def scores(path: Path) -> dict[tuple[str, str], tuple[int, float]]:
    """Return the number of lines and the score in percent of each task and metric in a file of hypotheses."""
    tasks: dict[str, list[Hypothesis]] = {}
    for line in read_hypotheses(path):
        tasks.setdefault(task_name(line.task), []).append(line)
    return {
        (task, name): (len(lines), metric([x.hypothesis for x in lines], [x.references for x in lines]).value)
        for task, lines in tasks.items()
        for name, metric in METRICS.get(task, QUESTION)
    }


def show(rows: Sequence[Entry], console: Console) -> None:
    """Print the table."""
    table = Table("test", "task", "metric", box=box.SIMPLE)
    for title in ("n", "speech", "LLM on the transcript", "Whisper's own decoder"):
        table.add_column(title, justify="right")
    for row in rows:
        mark = "*" if row.text is not None and row.text < FLOOR and "↑" in row.metric else ""
        table.add_row(
            row.test,
            row.task,
            row.metric,
            str(row.n),
            f"{row.speech:.1f}",
            _number(row.text) + mark,
            _number(row.whisper),
        )
    print_whole(table, console)
    if any(row.whisper is not None and row.task != "asr" for row in rows):
        console.print("Whisper's own decoder: where it is asked something, the LLM reads its transcript", style="dim")
    if any(row.text is not None and row.text < FLOOR and "↑" in row.metric for row in rows):
        console.print(f"* below {FLOOR:.0f}: the LLM cannot do this task with text either", style="dim")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
