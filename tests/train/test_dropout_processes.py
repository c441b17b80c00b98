"""Dropout in several processes: masks of their own, the same in every run with the same seed."""

from dataclasses import dataclass, replace

import pytest

from ossicle.batch import Batch, LossOutput
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.regression import Regression
from processes import Run, Watched, in_two


@dataclass
class Recorded(Watched):
    """Objective that records the loss of each call in its process."""

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        output = super().__call__(model, batch)
        self.ids[-1] = float(output.total)
        return output


@pytest.mark.slow
def test_processes_draw_different_masks_and_a_run_repeats_its_own(config, manifest, tmp_path):
    twins = tmp_path / "twins.jsonl"
    sample = read_manifest(manifest)[0]
    write_manifest(twins, [sample, replace(sample, id="again")])

    def run(name: str, dropout: float) -> Run:
        projector = {**config().model.projector.__dict__, "dropout": dropout}
        data = {"train": [str(twins)], "batch_size": 1}
        made = config(name=name, model={"projector": projector}, data=data, train={"steps": 4})
        return Run(made, Recorded(Regression()))

    results = in_two([run("quiet", 0.0), run("noisy", 0.3), run("repeated", 0.3)], tmp_path)
    quiet, noisy, repeated = [[rank["ids"] for rank in ranks] for ranks in results]
    assert quiet[0] == pytest.approx(quiet[1], rel=1e-6)  # both processes have the same utterance
    assert all(abs(one / other - 1) > 1e-4 for one, other in zip(*noisy, strict=True))
    assert repeated == noisy
