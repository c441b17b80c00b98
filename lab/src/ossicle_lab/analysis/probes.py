"""Train linear classifiers on pooled vectors: gender, speaker, speaking rate, emotion and age.

A probe is a multinomial logistic regression. Cross-validation makes sure that it cannot rely on known voices or known
sentences; see `FIELDS`. Needs scikit-learn (the ``analysis`` extra), which is imported on the first call.

Shapes: N utterances, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ossicle.batch import Sample
from ossicle.data.words import spoken_words
from ossicle.errors import DataError

Indices = NDArray[np.intp]
MOST_FOLDS = 5
LEAST_UTTERANCES = 20
"""With fewer utterances, a single one changes the accuracy by more than 5 points."""
COMPONENTS = 64
"""Number of leading principal components that the classifier reads, so that vectors of different widths are comparable
and wide ones are fast."""
BINS = ("low", "middle", "high")
SEED = 0


class ProbeError(DataError):
    """A field cannot be probed in this data; the message says what is missing."""


@dataclass(frozen=True)
class Field:
    """A property of an utterance that a probe predicts."""

    name: str
    label_of: Callable[[Sample], str | float | None]
    """Return the class, a number that is binned into three classes of equal size, or None for unknown."""
    held_out: Literal["speaker", "text"]
    """Property that training and test folds must not share."""
    purge_texts: bool = False
    """Also remove training utterances with the transcript of a test utterance."""
    least: int = 2
    """Classes with fewer speakers (or texts, if texts are held out) are left out."""


def words_per_second(sample: Sample) -> float | None:
    """Return the speaking rate, pauses included, or None if text or duration is unknown."""
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
"""Gender, age and emotion are tested on new voices. The speaker can only be predicted among known voices, so it is
tested on new sentences. The speaking rate depends on both, so both are new."""


@dataclass(frozen=True)
class Task:
    """A field with its labels and folds."""

    name: str
    rows: Indices
    """(N,) indices of the utterances."""
    labels: NDArray[np.str_]
    """(N,) classes."""
    folds: list[tuple[Indices, Indices]]
    """For each fold the positions in ``rows`` to train on and to test on."""
    bins: list[float] | None
    """The two edges between low, middle and high if the field is a number."""
    held_out: str

    @property
    def classes(self) -> dict[str, int]:
        """The number of utterances of each class."""
        return dict(sorted(Counter(self.labels.tolist()).items()))


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy on held-out utterances."""

    accuracy: float
    """Percentage of correct predictions over all folds."""
    sd: float
    """Standard deviation over folds, in percent. It is large if there are few speakers."""


def make_task(field: Field, samples: Sequence[Sample]) -> Task:
    """Return labels and folds of ``field``. Raises `ProbeError` if it cannot be probed in ``samples``."""
    if field.held_out == "speaker" and not any(sample.speaker for sample in samples):
        raise ProbeError('no line has a "speaker", which the folds must not share')
    found = [(i, field.label_of(s)) for i, s in enumerate(samples) if field.held_out != "speaker" or s.speaker]
    known = [(i, label) for i, label in found if label is not None]
    if not known:
        raise ProbeError("no line has a value")
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
    """Return the accuracy of a logistic regression on ``vectors`` (N_all, D) over the folds of ``task``.

    The vectors are standardised and reduced to the 64 leading principal components; C is 1. Everything is fitted on the
    training folds only.
    """
    x = np.asarray(vectors.float())[task.rows]
    return _cross_validated(task, lambda train: _classifier(len(train), x.shape[1]), x)


def majority(task: Task) -> float:
    """Return the accuracy, in percent, of always predicting the most frequent class of all utterances.

    The most frequent class of the training folds would be a baseline below chance: if whole speakers are held out, a
    class that is frequent in one part is rare in the other.
    """
    return 100 * max(task.classes.values()) / len(task.rows)


def _classifier(count: int, width: int) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    leading = PCA(min(COMPONENTS, width, count), svd_solver="auto", random_state=SEED)
    return make_pipeline(StandardScaler(), leading, LogisticRegression(max_iter=1000))


def _cross_validated(task: Task, make: Callable[[Indices], Any], x: NDArray[np.float32]) -> ProbeResult:
    right = []
    for train, test in task.folds:
        said = make(train).fit(x[train], task.labels[train]).predict(x[test])
        right.append(said == task.labels[test])
    return ProbeResult(100 * float(np.concatenate(right).mean()), 100 * float(np.std([fold.mean() for fold in right])))


def _binned(values: Sequence[str | float]) -> tuple[list[str], list[float] | None]:
    """Return the classes of ``values``, and the edges of three bins of equal size if all values are numbers."""
    numbers = [value for value in values if isinstance(value, float)]
    if not numbers or len(numbers) < len(values):
        return [str(value) for value in values], None
    edges = np.quantile(numbers, (1 / 3, 2 / 3))
    return [BINS[i] for i in np.digitize(numbers, edges)], edges.tolist()


def _group(sample: Sample, held_out: str) -> str:
    return (sample.speaker if held_out == "speaker" else sample.text) or ""


def _folds(
    y: NDArray[np.str_], groups: NDArray[np.str_], texts: NDArray[np.str_] | None
) -> list[tuple[Indices, Indices]]:
    """Return stratified folds that share no group, at most as many as each class has groups.

    Raises `ProbeError` if fewer than two classes are left to train on without the ``texts`` of the test fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(MOST_FOLDS, *(len(set(groups[y == label])) for label in set(y.tolist())))
    folds = []
    for train, test in StratifiedGroupKFold(count, shuffle=True, random_state=SEED).split(y, y, groups):
        if texts is not None:
            train = train[~np.isin(texts[train], texts[test])]
        if len(set(y[train].tolist())) < 2:
            raise ProbeError("all speakers read the same sentences: without them no training data is left")
        if len(test):
            folds.append((train, test))
    return folds
