"""What a linear classifier can read from pooled vectors: gender, speaker, speaking rate, emotion, age.

A multinomial logistic regression, cross-validated so that a probe cannot do its task by knowing the voice or the
sentence: see `FIELDS`. Needs scikit-learn (the ``analysis`` extra), imported on the first call.

Shapes: N utterances, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ossicle.batch import Sample
from ossicle.data.words import spoken_words

MOST_FOLDS = 5
LEAST_UTTERANCES = 20
"""With fewer, one utterance more or less is 5 points of accuracy and more."""
COMPONENTS = 64
"""Leading principal components that the classifier reads: layers and encoders of any width are given as much, and a
probe of wide vectors takes a second."""
BINS = ("low", "middle", "high")
SEED = 0


class ProbeError(ValueError):
    """A probe cannot be made of this data; the message says what is missing."""


@dataclass(frozen=True)
class Field:
    """Something about an utterance that a probe tells."""

    name: str
    label_of: Callable[[Sample], str | float | None]
    """The class; a number is put in one of three bins of equal size; None: unknown, and left out."""
    held_out: Literal["speaker", "text"]
    """What no test fold shares with its training folds."""
    purge_texts: bool = False
    """Also leave out of training what has the same transcript as a test utterance."""
    least: int = 2
    """Classes with fewer speakers (texts, where those are held out) are left out."""


def words_per_second(sample: Sample) -> float | None:
    """Speaking rate with the pauses; None where text or duration is unknown."""
    if not sample.text or not sample.duration_s:
        return None
    return len(spoken_words(sample.text)) / sample.duration_s


def _extra(name: str) -> Callable[[Sample], str | float | None]:
    def read(sample: Sample) -> str | float | None:
        value = sample.extra.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        return value if isinstance(value, str) else float(value)

    return read


FIELDS = (
    Field("gender", _extra("gender"), "speaker"),
    Field("speaking rate", words_per_second, "speaker", purge_texts=True),
    Field("speaker", lambda sample: sample.speaker, "text", least=MOST_FOLDS),
    Field("emotion", _extra("emotion"), "speaker"),
    Field("age", _extra("age"), "speaker"),
)
"""A speaker's gender, age and way to be angry must be found in voices that the probe has not met. A speaker can only be
found among voices it has met, so there it is the sentence that is new. The rate is tied to both."""


@dataclass(frozen=True)
class Task:
    """A field made ready to be probed."""

    name: str
    rows: np.ndarray  # (N,) which utterances
    labels: np.ndarray  # (N,) str
    folds: list[tuple[np.ndarray, np.ndarray]]
    """Positions in ``rows`` to train and to test on."""
    bins: list[float] | None
    """The two edges between low, middle and high, where the field is a number."""
    held_out: str

    @property
    def classes(self) -> dict[str, int]:
        """Utterances of each class."""
        return dict(sorted(Counter(self.labels.tolist()).items()))


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy on utterances held out."""

    accuracy: float
    """Percentage of all test utterances."""
    sd: float
    """Standard deviation of the folds' accuracies: folds of few speakers differ much."""


def make_task(field: Field, samples: Sequence[Sample]) -> Task:
    """Labels and folds of ``field``. Raises `ProbeError` that says why it cannot be probed in ``samples``."""
    if field.held_out == "speaker" and not any(sample.speaker for sample in samples):
        raise ProbeError('no line has a "speaker", whom the folds must not share')
    found = [(i, field.label_of(s)) for i, s in enumerate(samples) if field.held_out != "speaker" or s.speaker]
    known = [(i, label) for i, label in found if label is not None]
    if not known:
        raise ProbeError("no line says it")
    labels, bins = _binned([label for _, label in known])
    groups = np.array([_group(samples[i], field.held_out) for i, _ in known])
    frequent = {label for label in labels if len(set(groups[np.array(labels) == label])) >= field.least}
    kept = np.array([label in frequent for label in labels], dtype=bool)
    if len(frequent) < 2 or kept.sum() < LEAST_UTTERANCES:
        raise ProbeError(
            f"{int(kept.sum())} utterances are of the {len(frequent)} classes with {field.least} {field.held_out}s or "
            f"more: a probe needs {LEAST_UTTERANCES} utterances and 2 such classes"
        )
    rows, y, groups = (np.array(values)[kept] for values in ([i for i, _ in known], labels, groups))
    texts = np.array([samples[i].text or "" for i in rows])
    folds = _folds(y, groups, texts if field.purge_texts else None)
    return Task(field.name, rows, y, folds, bins, field.held_out)


def probe(vectors: Tensor, task: Task) -> ProbeResult:
    """Accuracy of a logistic regression on ``vectors`` (N_all, D) of all utterances, over the folds of ``task``.

    Standardised, then on the 64 leading principal components, L2 penalty 1 (scikit-learn's C); everything is fitted on
    the training folds alone.
    """
    x = np.asarray(vectors.float())[task.rows]
    return _cross_validated(task, lambda train: _classifier(len(train), x.shape[1]), x)


def majority(task: Task) -> float:
    """Accuracy, in percent, of always saying the most frequent class of all utterances.

    Not of the training folds: where whole speakers are held out, what is frequent in one part is rare in the other, and
    such a baseline falls below chance.
    """
    return 100 * max(task.classes.values()) / len(task.rows)


def _classifier(count: int, width: int) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    leading = PCA(min(COMPONENTS, width, count), svd_solver="auto", random_state=SEED)
    return make_pipeline(StandardScaler(), leading, LogisticRegression(max_iter=1000))


def _cross_validated(task: Task, make: Callable[[np.ndarray], Any], x: np.ndarray) -> ProbeResult:
    right = []
    for train, test in task.folds:
        said = make(train).fit(x[train], task.labels[train]).predict(x[test])
        right.append(said == task.labels[test])
    return ProbeResult(100 * float(np.concatenate(right).mean()), 100 * float(np.std([fold.mean() for fold in right])))


def _binned(values: Sequence[str | float]) -> tuple[list[str], list[float] | None]:
    """Classes of ``values``: their own, or three bins of equal size and their edges where all are numbers."""
    numbers = [value for value in values if isinstance(value, float)]
    if not numbers or len(numbers) < len(values):
        return [str(value) for value in values], None
    edges = np.quantile(numbers, (1 / 3, 2 / 3))
    return [BINS[i] for i in np.digitize(numbers, edges)], edges.tolist()


def _group(sample: Sample, held_out: str) -> str:
    return (sample.speaker if held_out == "speaker" else sample.text) or ""


def _folds(y: np.ndarray, groups: np.ndarray, texts: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds without a group in two of them, at most as many as each class has groups.

    Raises `ProbeError` where nothing to tell apart is left to train on, once lines with ``texts`` of the test fold are
    taken out.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(MOST_FOLDS, *(len(set(groups[y == label])) for label in set(y.tolist())))
    folds = []
    for train, test in StratifiedGroupKFold(count, shuffle=True, random_state=SEED).split(y, y, groups):
        if texts is not None:
            train = train[~np.isin(texts[train], texts[test])]
        if len(set(y[train].tolist())) < 2:
            raise ProbeError("its speakers all read the same sentences: nothing is left to train on without them")
        if len(test):
            folds.append((train, test))
    return folds
