"""Linear probes by field and layer: speech before and after training, against transcript, encoder and majority."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from ossicle.batch import Sample
from ossicle.inspect.states import PooledStates
from ossicle.train.tracking import bar
from ossicle_lab.analysis.probes import FIELDS, ProbeError, Task, majority, make_task, probe

STAGES = ("before", "after")


@dataclass
class Probes:
    """Collects results stage by stage; without layers, `run` does nothing."""

    layers: Sequence[int] = ()
    records: list[dict[str, Any]] = field(default_factory=list)
    """A record per field, as in the JSON."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Field -> why it is not probed."""
    _stages: int = 0

    def run(self, name: str, states: PooledStates, frames: Tensor, samples: Sequence[Sample]) -> None:
        """Probe the states of one stage; on the second one also transcripts, encoder and majority.

        ``frames`` (N, D_encoder) and ``samples`` are those of ``states``.
        """
        stage = STAGES[self._stages]
        self._stages += 1
        if not self.layers:
            return
        tasks = self._tasks(samples)
        found = {record["field"]: record for record in self.records}
        with bar() as progress:
            for task in progress.track(tasks, description=f"{name}: probes"):
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
    """Probes of these layers. Raises `RuntimeError` without scikit-learn."""
    if find_spec("sklearn") is None:
        raise RuntimeError("probes need scikit-learn: pip install 'ossicle[analysis]', or pass --no-probes")
    return Probes(layers)
