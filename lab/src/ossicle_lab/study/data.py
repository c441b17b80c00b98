"""The manifests of a study: made or found, checked against what the study says, their frames encoded once."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest
from ossicle.errors import ConfigError
from ossicle.prompts import task_key
from ossicle.train import recipe as recipes
from ossicle_lab.study.config import StudyConfig, StudyData


def prepare_data(config: StudyConfig, console: Console) -> StudyData:
    """Speak the lab's corpus if the study uses it, check the manifests, and fill the cache of frames.

    Raises `ConfigError` where stage 2 would train on an unseen task, or the test lacks one.
    """
    data = config.data
    if data.lab is not None:
        from ossicle_lab.study.lab_data import make_lab_data

        console.print("Speaking the corpus (espeak-ng) …")
        data = make_lab_data(config.folder / "data", data, data.lab)
    _check_tasks(data)
    _encode(config, data, console)
    return data


def _check_tasks(data: StudyData) -> None:
    for sample in _read(data.finetune):
        if (key := _key(sample)) in data.unseen:
            raise ConfigError(
                f"{sample.source}: is a line of {key}, which data.unseen keeps out of stage 2; remove one of the two"
            )
    for field, manifests, wanted in (
        ("test", data.test, [*data.tasks, *data.unseen]),
        ("dev", data.dev, data.tasks if data.dev else []),
        ("finetune", data.finetune, data.tasks),
    ):
        there = {_key(sample) for sample in _read(manifests)}
        if missing := [key for key in wanted if key not in there]:
            raise ConfigError(f"data.{field}: {', '.join(manifests)} has no line of {', '.join(missing)}")


def _encode(config: StudyConfig, data: StudyData, console: Console) -> None:
    """Fill the cache before processes share it."""
    import torch

    from ossicle_lab.study.measure import fill_frames

    settings = recipes.load(config.finetuning.recipe, [*config.finetuning.overrides, "data.train=[none]"])
    device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")
    console.print("Encoding it once with the frozen encoder …")
    manifests = [*data.pretrain, *data.extra, *data.finetune, *data.dev, *data.test, *data.alignment]
    fill_frames(manifests, settings.model.build(device).to(device), config.folder / "cache")


def _read(manifests: Sequence[str]) -> list[Sample]:
    return [sample for path in manifests for sample in read_manifest(path)]


def _key(sample: Sample) -> str:
    return task_key(sample.task or "asr", sample.target_language)
