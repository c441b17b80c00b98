"""A checkpoint that ships is about a quarter as large and names no folder of this machine."""

import json
import shutil

import pytest

from ossicle.errors import ConfigError
from ossicle.models.speech_llm import SpeechLLM
from ossicle_lab.real import models
from ossicle_lab.real.ship import ship


def test_a_shipped_checkpoint_loads_with_the_published_models(model, folders, tmp_path, monkeypatch):
    named = {"whisper-base": folders["hubert"], "smollm2-135m-instruct": folders["llama"]}
    for name, folder in named.items():
        shutil.copytree(folder, tmp_path / name)
    model.save(tmp_path / "run")
    record = json.loads((tmp_path / "run/ossicle.json").read_text())
    record["model"] |= {"encoder": str(tmp_path / "whisper-base"), "llm": str(tmp_path / "smollm2-135m-instruct")}
    (tmp_path / "run/ossicle.json").write_text(json.dumps(record))
    ship(tmp_path / "run", tmp_path / "shipped")
    written = (tmp_path / "shipped/ossicle.json").read_text()
    assert str(tmp_path) not in written
    sizes = [(tmp_path / name / "projector.safetensors").stat().st_size for name in ("run", "shipped")]
    assert sizes[1] < 0.5 * sizes[0]  # a tiny projector has many vectors and names beside its matrices
    monkeypatch.setenv(models.CACHE_VARIABLE, str(tmp_path))
    loaded = SpeechLLM.from_pretrained(tmp_path / "shipped")
    for name, tensor in model.projector.state_dict().items():
        rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
        found = loaded.projector.state_dict()[name].reshape(rows.shape)
        assert ((found - rows).abs().amax(1) <= rows.abs().amax(1) / (254 if tensor.ndim > 1 else 256) + 1e-9).all()


def test_other_base_models_are_refused(model, tmp_path):
    model.save(tmp_path / "run")
    with pytest.raises(ConfigError, match="none of the published models"):
        ship(tmp_path / "run", tmp_path / "shipped")
