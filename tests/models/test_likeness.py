"""Copies of a model are recognised by a sketch of its weights; another model is refused."""

import json
import shutil

import pytest
import torch
from torch import nn

from ossicle.errors import CheckpointError
from ossicle.models import likeness
from ossicle.models.likeness import difference, sketch
from ossicle.models.saving import locate
from ossicle.models.speech_llm import SpeechLLM


def noisy(model, share, seed=0):
    """Add noise to every matrix, of ``share`` of its size."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            noise = torch.randn_like(weight)
            weight.data += share * weight.norm() / noise.norm() * noise
    return model


def layers():
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(160, 160) for _ in range(12)))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3])
def test_a_sketch_estimates_the_relative_difference(share):
    before = sketch(layers())
    assert difference([before, sketch(noisy(layers(), share))]) == pytest.approx(share, rel=0.35, abs=1e-6)


def test_models_of_other_shapes_or_weights_differ():
    assert difference([sketch(layers()), sketch(layers()[:6])]) == float("inf")
    torch.manual_seed(2)
    other = nn.Sequential(*(nn.Linear(160, 160) for _ in range(12)))
    assert difference([sketch(layers()), sketch(other)]) > 1


def copied_llm(model, tmp_path, share):
    """Save ``model``'s LLM with noise on its weights, and return the folder."""
    from transformers import AutoModelForCausalLM

    source = model.config.llm
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    noisy(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), share).save_pretrained(folder)
    return folder


def test_a_copy_of_the_llm_is_accepted_with_a_warning(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(likeness, "LEAST", 256)  # the matrices of tiny models are small
    model.save(tmp_path / "saved")
    loaded = SpeechLLM.from_pretrained(tmp_path / "saved", llm=str(copied_llm(model, tmp_path, 0.05)))
    assert loaded.llm.fingerprint != model.llm.fingerprint
    assert "another copy of the llm" in caplog.text
    assert "differ by" in caplog.text


def test_another_llm_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(likeness, "LEAST", 256)
    model.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="fingerprint"):
        SpeechLLM.from_pretrained(tmp_path / "saved", llm=str(copied_llm(model, tmp_path, 0.6)))


def test_a_record_without_sketches_knows_fingerprints_only(model, tmp_path):
    model.save(tmp_path / "saved")
    path = tmp_path / "saved" / "ossicle.json"
    record = json.loads(path.read_text())
    del record["sketches"]
    path.write_text(json.dumps(record))
    assert SpeechLLM.from_pretrained(tmp_path / "saved").llm.fingerprint == model.llm.fingerprint
    with pytest.raises(CheckpointError, match="fingerprint"):
        SpeechLLM.from_pretrained(tmp_path / "saved", llm=str(copied_llm(model, tmp_path, 0.01)))


def test_a_packaged_checkpoint_is_found_by_its_name(monkeypatch, tmp_path):
    class Entry:
        def load(self):
            return lambda: tmp_path / "packaged"

    def entries(*, group, name):
        return [Entry()] if (group, name) == ("ossicle.checkpoints", "ears") else []

    monkeypatch.setattr("ossicle.models.saving.entry_points", entries)
    assert locate("ears") == tmp_path / "packaged"
    assert locate(tmp_path) == tmp_path
    assert str(locate("nothing")) == "nothing"
