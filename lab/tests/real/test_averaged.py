"""The model of `make real` has the mean of both stages' weights, except for those that stage 1 does not train."""

import copy

import pytest
import torch

from ossicle.errors import CheckpointError, ConfigError
from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle_lab.real.averaged import average

SPELLS = {"name": "ctc", "width": 16, "heads": 2, "layers": 2, "ffn": 24, "kernel": 3}


def built(folders, projector):
    torch.manual_seed(0)
    return ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=projector).build()


@pytest.fixture(scope="module")
def stages(folders, tmp_path_factory):
    before = built(folders, SPELLS)
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.projector.parameters():
            parameter += torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("stages")
    before.save(folder / "1")
    after.save(folder / "2")
    return folder, before.projector.state_dict(), after.projector.state_dict()


def test_weights_are_the_mean_and_the_prompt_is_that_of_stage_two(stages, tmp_path):
    folder, before, after = stages
    average(folder / "1", folder / "2", tmp_path / "mean")

    found = SpeechLLM.from_pretrained(tmp_path / "mean").projector
    kept = {id(parameter) for parameter in found.unspelled}
    names = {name for name, parameter in found.named_parameters() if id(parameter) in kept}
    assert len(names) == 3
    for name, parameter in found.named_parameters():
        expected = after[name] if name in names else (before[name] + after[name]) / 2
        torch.testing.assert_close(parameter.data, expected)


def test_projectors_of_different_shapes_are_refused(stages, folders, tmp_path):
    folder, *_ = stages
    other = built(folders, QFormerConfig(width=16, heads=2, layers=1, ffn=16, queries=1))
    other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match="different projectors"):
        average(tmp_path / "other", folder / "2", tmp_path / "mean")
    with pytest.raises(CheckpointError):
        average(tmp_path, folder / "2", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
