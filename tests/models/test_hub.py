"""Checkpoints with a card, to and from a hub that is a stub."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from ossicle import SpeechLLM
from ossicle.errors import CheckpointError, ConfigError
from ossicle.models.card import licence, model_card, public_name
from ossicle.models.saving import locate, read_record


@pytest.fixture
def saved(model, tmp_path):
    model.instructions = {"asr": "write it down"}
    model.longest_s = 3.0
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_saved_model_has_a_card_without_local_paths(saved):
    text = (saved / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "ossicle"
    assert 'model.generate("recording.wav", "write it down")' in body
    assert "The longest recording of the training lasts 3.0 s" in body
    assert "| encoder | hubert |" in body
    assert str(saved.parent.parent) not in text


def test_a_card_tells_recipe_data_and_scores_of_the_run(saved, tmp_path):
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    lines = [
        {"id": "a", "audio": "a.wav", "duration_s": 1800.0, "speaker": "x", "language": "en", "license": "CC0"},
        {"id": "b", "audio": "a.wav", "duration_s": 1800.0, "speaker": "x", "language": "en", "license": "CC0"},
        {"id": "c", "audio": "c.wav", "duration_s": 900.0, "speaker": "y", "language": "en", "license": "MIT"},
    ]
    (run / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"name": "mine", "data": {"train": [str(run / "train.jsonl")], "batch_size": 16}, "train": {"steps": 1200}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    row = {"task": "asr", "scores": {"wer": 12.34}, "intervals": {"wer": {"low": 10.0, "high": 15.0}}, "n": 40}
    (run / "eval" / "test.scores.json").write_text(json.dumps({"rows": [row]}))
    card = model_card(read_record(saved), run)
    assert "# mine: hubert to llama" in card
    assert "Steps of the last stage: 1,200, batches of 16" in card
    assert "| train.jsonl | 3 | 0.75 | 2 | en | CC0, MIT |" in card
    assert "| test | asr | wer | 12.3 | 10.0 to 15.0 | 40 |" in card
    assert str(tmp_path) not in card


def test_a_checkpoint_keeps_its_own_card(saved, tmp_path):
    (saved / "README.md").write_text("written by hand")
    SpeechLLM.from_pretrained(saved).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "written by hand"


def test_licences_are_those_that_the_base_models_state(tmp_path):
    assert licence("openai/whisper-base", "openai/whisper-base") == "MIT"
    assert licence("whisper-base", "/models/whisper-base") == "MIT"
    assert licence("unknown", "/nowhere").startswith("not stated")
    (tmp_path / "README.md").write_text("---\nlicense: gpl-3.0\n---\n# A model")
    assert licence("openai/whisper-base", str(tmp_path)) == "gpl-3.0"
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert licence("unknown", str(tmp_path)).startswith("not stated")
    assert (public_name("/home/me/models/llm"), public_name("org/llm")) == ("llm", "org/llm")


def test_a_hub_id_is_downloaded(saved, monkeypatch, tmp_path):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append(name) or str(saved))
    loaded = SpeechLLM.from_pretrained("someone/ears", device="cpu", dtype="float32")
    assert asked and set(asked) == {"someone/ears"}
    assert loaded.instructions == {"asr": "write it down"}
    assert locate(saved) == saved


def test_a_hub_that_is_not_reached_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="runs/typo: there is no such folder, and the hub was not reached"):
        SpeechLLM.from_pretrained("runs/typo")
    with pytest.raises(CheckpointError, match="is not a checkpoint of Ossicle"):
        SpeechLLM.from_pretrained(tmp_path / "typo")


def test_upload_makes_a_repository_with_the_files_of_a_checkpoint(model, monkeypatch):
    calls = {}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, repo_id, *, private, exist_ok):
            calls["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls["files"] = sorted(path.name for path in Path(folder_path).iterdir())

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert model.push_to_hub("me/ears", private=True, token="secret") == "https://huggingface.co/me/ears"
    assert calls["repo"] == ("me/ears", True, True)
    assert calls["files"] == ["README.md", "ossicle.json", "projector.safetensors"]
    assert calls["token"] == "secret"

    def refuse(*_, **__):
        raise OSError("no network")

    Api.create_repo = refuse
    with pytest.raises(CheckpointError, match=r"me/ears: the hub did not take the checkpoint .no network"):
        model.push_to_hub("me/ears")


def test_device_and_dtype(saved, monkeypatch):
    assert next(SpeechLLM.from_pretrained(saved).projector.parameters()).device == torch.device("cpu")
    monkeypatch.setattr("ossicle.precision.usable", lambda dtype, device=None: dtype)
    monkeypatch.setattr("ossicle.models.speech_llm.usable", lambda dtype, device=None: dtype)
    half = SpeechLLM.from_pretrained(saved, dtype=torch.bfloat16)
    assert (half.encoder.model.dtype, half.llm.model.dtype) == (torch.bfloat16, torch.bfloat16)
    assert half.config.llm_dtype == "bfloat16"
    with pytest.raises(ConfigError, match="dtype=float8: give auto or one of float32"):
        SpeechLLM.from_pretrained(saved, dtype="float8")
    with pytest.raises(ConfigError, match="device=cuda:7: this machine has no such device"):
        SpeechLLM.from_pretrained(saved, device="cuda:7")
