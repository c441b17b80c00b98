"""Train linear probes for every field and layer, on speech, transcripts and encoder frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ossicle.batch import Batch, HiddenStates, Sample
from ossicle.errors import MissingPackageError
from ossicle.inspect.states import PooledStates
from ossicle.losses.contrastive import mean_pool
from ossicle.progress import track
from ossicle_lab.analysis.probes import FIELDS, ProbeError, Task, majority, make_task, probe

STAGES = ("before", "after")


@dataclass
class Probes:
    """Collects the results of both stages. Without layers, `run` does nothing."""

    layers: Sequence[int] = ()
    records: list[dict[str, Any]] = field(default_factory=list)
    """One record per field, as in ``analysis.json``."""
    skipped: dict[str, str] = field(default_factory=dict)
    """The reason why a field is not probed."""
    _stages: int = 0

    def run(self, name: str, states: PooledStates, frames: Tensor, samples: Sequence[Sample]) -> None:
        """Probe the states of one stage, and in the second stage also transcripts, encoder and majority class.

        ``frames`` (N, D_encoder) and ``samples`` are those of ``states``.
        """
        stage = STAGES[self._stages]
        self._stages += 1
        if not self.layers:
            return
        tasks = self._tasks(samples)
        found = {record["field"]: record for record in self.records}
        for task in track(tasks, f"{name}: probes", unit="tasks"):
            record = found.get(task.name) or self._begin(task)
            for row in record["layers"]:
                row[stage] = asdict(probe(states.speech[row["layer"]], task))
                if stage == STAGES[-1]:
                    row["transcript"] = asdict(probe(states.text[row["layer"]], task))
            if stage == STAGES[-1]:
                record |= {"encoder": asdict(probe(frames, task)), "majority": majority(task)}

    def _begin(self, task: Task) -> dict[str, Any]:
        record: dict[str, Any] = {
            "field": task.name,
            "classes": task.classes,
            "bins": task.bins,
            "held_out": task.held_out,
            "folds": len(task.folds),
            "layers": [{"layer": layer} for layer in self.layers],
        }
        self.records.append(record)
        return record

    def _tasks(self, samples: Sequence[Sample]) -> Iterable[Task]:
        tasks = []
        for candidate in FIELDS:
            try:
                tasks.append(make_task(candidate, samples))
            except ProbeError as error:
                self.skipped[candidate.name] = str(error)
        return tasks


def probing(layers: Sequence[int]) -> Probes:
    """Return probes for these layers. Raises `MissingPackageError` if scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise MissingPackageError("probes need scikit-learn: pip install 'ossicle[analysis]', or pass --no-probes")
    return Probes(layers)


class PooledFrames:
    """Observe the mean of each utterance's encoder frames, the input of the projector."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def observe(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """Process one batch of `encoded`. Raises `ValueError` if it has no frames."""
        if batch.frames is None:
            raise ValueError("the batch has no frames: pass it through `encoded` first")
        self._parts.append(mean_pool(batch.frames.values, batch.frames.mask).cpu())

    @property
    def frames(self) -> Tensor:
        """Return the mean frames (N, D_encoder) of all batches so far."""
        return torch.cat(self._parts)
