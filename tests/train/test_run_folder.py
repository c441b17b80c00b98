"""A run's folder: its settings hold in every working directory, and what cannot be written is found at the start."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ConfigError, TrainingError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.train.loop import train
from ossicle.train.recipe import load, parse, to_dict
from ossicle.train.run_folder import _absolute
from ossicle.train.tracking import read_metrics


def in_folder(folder: Path, monkeypatch) -> Path:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    return folder


def relative(config, folders, manifest, **train_settings):
    """Return a run whose every path starts at the working directory, which gets links to the models and manifests."""
    for name, target in (("encoder", folders["hubert"]), ("llm", folders["llama"])):
        Path(name).symlink_to(target)
    write_manifest("some.jsonl", read_manifest(manifest))
    settings = config(train=train_settings, data={"train": ["some.jsonl"], "dev": ["some.jsonl"]})
    model = replace(settings.model, encoder="encoder", llm="llm")
    return replace(settings, output_dir="runs", model=model)


def test_the_settings_of_a_run_hold_in_every_working_directory(config, folders, manifest, tmp_path, monkeypatch):
    """The manifests, the models, the start and the run's own folder are found from another folder, and it resumes."""
    home = in_folder(tmp_path / "home", monkeypatch)
    settings = relative(config, folders, manifest, steps=2)
    first = train(settings)
    second = replace(settings, name="second", train=replace(settings.train, init_from=str(first)))
    folder = train(second).resolve()
    in_folder(tmp_path / "elsewhere", monkeypatch)
    found = load(folder / "config.yaml")
    assert found.folder == folder
    assert found.train.init_from == str(home / "runs" / "run")
    assert found.data.train == found.data.dev == [str(home / "some.jsonl")]
    assert found.data.cache_dir == str(home / "runs" / "cache")
    train(load(folder / "config.yaml", ["train.steps=3"]), resume=True)
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == "train"] == [1, 2, 3]
    assert SpeechLLM.from_pretrained(folder).projector.num_queries == 2


def test_a_hub_id_stays_a_hub_id(config):
    settings = config()
    named = replace(settings, model=replace(settings.model, encoder="openai/whisper-base", llm="lab"))
    assert (_absolute(named)["model"]["encoder"], _absolute(named)["model"]["llm"]) == ("openai/whisper-base", "lab")


def test_a_run_that_moves_with_its_data_and_its_start_is_resumed(config, folders, manifest, tmp_path, monkeypatch):
    in_folder(tmp_path / "old", monkeypatch)
    settings = relative(config, folders, manifest, steps=2)
    augment = {"noise": ["some.jsonl"], "noise_snr_db": [10, 20]}
    tree = to_dict(settings)
    settings = parse({**tree, "data": {**tree["data"], "augment": augment}, "name": "first"})
    first = train(settings)
    second = replace(settings, name="second", train=replace(settings.train, init_from=str(first)))
    folder = train(second)
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    longer = replace(second, train=replace(second.train, steps=3))
    train(longer, resume=True)
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == "train"] == [1, 2, 3]
    other = replace(longer, train=replace(longer.train, steps=4, init_from="runs/second"))
    with pytest.raises(ConfigError, match=r"second was started with other settings: train\.init_from"):
        train(other, resume=True)


def test_a_start_that_is_still_there_has_not_moved(config, tmp_path):
    first, copy = train(config(name="first", train={"steps": 1})), tmp_path / "copies" / "first"
    second = config(name="second", train={"init_from": str(first), "steps": 1})
    train(second)
    copy.parent.mkdir()
    copy.symlink_to(config(name="third").folder)
    (config(name="third").folder).mkdir()
    with pytest.raises(ConfigError, match=r"train\.init_from"):
        train(replace(second, train=replace(second.train, init_from=str(copy), steps=2)), resume=True)


def test_a_tilde_is_the_home_folder_in_every_path(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {"train": ["~/a.jsonl"], "dev": ["~/b.jsonl"], "cache_dir": "~/cache", "augment": {"noise": ["~/n.jsonl"]}}
    found = parse(tree(output_dir="~/out", data=paths, train={"init_from": "~/first"}))
    home = str(tmp_path)
    assert found.folder == tmp_path / "out" / "run"
    assert (found.data.train, found.data.dev) == ([f"{home}/a.jsonl"], [f"{home}/b.jsonl"])
    assert (found.data.cache_dir, found.data.augment.noise) == (f"{home}/cache", [f"{home}/n.jsonl"])
    assert found.train.init_from == f"{home}/first"


FILES = ["config.yaml", "versions.json", "metrics.jsonl", "projector.safetensors", "adapters.safetensors"]


@pytest.mark.parametrize("name", [*FILES, "ossicle.json"])
def test_a_folder_in_the_place_of_a_file_is_one_line_before_the_data_are_read(config, name):
    settings = config(data={"train": ["missing.jsonl"]})
    (settings.folder / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"{name}: is a folder, and training writes a file .* move it, or choose"):
        train(settings)


@pytest.mark.parametrize("name", ["checkpoints", "best", "tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_one_line_before_the_data_are_read(config, name):
    settings = config(data={"train": ["missing.jsonl"]}, train={"tensorboard": True})
    settings.folder.mkdir(parents=True)
    (settings.folder / name).write_text("")
    with pytest.raises(ConfigError, match=rf"{name}: is a file, and training writes a folder .* move it, or choose"):
        train(settings)


def test_events_that_are_not_written_need_no_folder(config):
    settings = config(train={"steps": 1, "tensorboard": False})
    settings.folder.mkdir(parents=True)
    (settings.folder / "tensorboard").write_text("")
    train(settings)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints"])
def test_what_may_not_be_written_is_one_line(config, name, monkeypatch):
    """The superuser may write everything, so that the answer of the operating system is replaced."""
    settings = config(data={"train": ["missing.jsonl"]})
    path = settings.folder / name
    path.mkdir(parents=True) if name == "checkpoints" else settings.folder.mkdir(parents=True)
    path.exists() or path.write_text("")
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != path and real(p, mode))
    with pytest.raises(ConfigError, match=rf"{name}: may not be written: change its permissions"):
        train(settings)


def test_metrics_that_cannot_be_created_are_one_line(config):
    """A link into a folder that does not exist."""
    settings = config(data={"train": ["missing.jsonl"]})
    settings.folder.mkdir(parents=True)
    (settings.folder / "metrics.jsonl").symlink_to(settings.folder / "missing" / "metrics.jsonl")
    with pytest.raises(TrainingError, match=r"cannot be written: .*metrics\.jsonl"):
        train(settings)
