"""Prepare the manifests of a study: create or find them, check their tasks, and encode their audio once."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ossicle.batch import Sample
from ossicle.data.dataset import known_duration_s
from ossicle.data.manifest import read_manifest
from ossicle.errors import ConfigError
from ossicle.prompts import task_key
from ossicle.train import recipe as recipes
from ossicle_lab.study.config import StudyConfig, StudyData


def prepare_data(config: StudyConfig, console: Console) -> StudyData:
    """Synthesise the lab's corpus if the study uses it, check the manifests, and fill the frame cache.

    Raises `ConfigError` if stage 2 would train on an unseen task, or if a manifest lacks one of the tasks.
    """
    if config.data.lab is not None:
        console.print("Synthesising the corpus with espeak-ng …")
    data = find_data(config)
    _check_tasks(data)
    _encode(config, data, console)
    if any(row.self_answers for row in config.pretraining.values()):
        console.print("Letting the LLM answer instructions about the transcripts …")
        _answer(config, data)
    return data


def find_data(config: StudyConfig) -> StudyData:
    """Return the data of a study with the paths of all manifests; missing parts of the lab's corpus are synthesised."""
    if config.data.lab is None:
        return config.data
    from ossicle_lab.study.lab_data import make_lab_data

    return make_lab_data(config.folder / "data", config.data, config.data.lab)


def _check_tasks(data: StudyData) -> None:
    for sample in _read(data.finetune):
        if (key := _key(sample)) in data.unseen:
            raise ConfigError(
                f"{sample.source}: has the task {key}, which data.unseen excludes from stage 2; remove one of the two"
            )
    for field, manifests, wanted in (
        ("test", data.test, [*data.tasks, *data.unseen]),
        ("dev", data.dev, data.tasks if data.dev else []),
        ("finetune", data.finetune, data.tasks),
    ):
        there = {_key(sample) for sample in _read(manifests)}
        if missing := [key for key in wanted if key not in there]:
            where, lacking = f"data.{field}: {', '.join(manifests)}", ", ".join(missing)
            raise ConfigError(f"{where} has no line with the task {lacking}; add lines or remove the task")


def _encode(config: StudyConfig, data: StudyData, console: Console) -> None:
    """Fill the frame cache before processes share it."""
    import torch

    from ossicle_lab.study.measure import fill_frames

    settings = recipes.load(config.finetuning.recipe, [*config.finetuning.overrides, "data.train=[none]"])
    device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")
    console.print("Encoding the audio once with the frozen encoder …")
    samples = [
        *_short_enough([*data.pretrain, *data.extra], _longest_s(config)),
        *_short_enough(data.finetune, settings.data.max_duration_s),
        *_read([*data.dev, *data.test, *data.alignment]),
    ]
    fill_frames(samples, settings.model.build(device).to(device), config.cache)


def _longest_s(config: StudyConfig) -> float:
    """Return the seconds of the longest utterance that stage 1 of any row takes."""
    stages = (
        recipes.load(row.recipe, [*config.stage1.overrides, *row.overrides, "data.train=[none]"])
        for row in config.pretraining.values()
        if row.recipe is not None
    )
    return max((stage.data.max_duration_s for stage in stages), default=0.0)


def _short_enough(manifests: Sequence[str], longest_s: float) -> list[Sample]:
    """Return the samples of at most ``longest_s`` seconds, and those whose manifest does not state their length."""
    return [s for s in _read(manifests) if (s.end_s or s.duration_s) is None or known_duration_s(s) <= longest_s]


def _answer(config: StudyConfig, data: StudyData) -> None:
    """Write the LLM's answers to the instructions about the transcripts of stage 1, one instruction for each."""
    import torch

    from ossicle.corpora.self_answers import AnswerOptions, prepare_answers
    from ossicle.data.manifest import write_manifest

    settings = recipes.load(config.finetuning.recipe, [*config.finetuning.overrides, "data.train=[none]"])
    device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")
    llm = settings.model.build(device).to(device).llm
    transcripts = config.answers.with_name("transcripts.jsonl")
    write_manifest(transcripts, _read(data.pretrain))
    options = AnswerOptions(
        instructions=data.instructions,
        per_utterance=1,
        max_new_tokens=config.max_new_tokens,
        turn=settings.model.turn,
    )
    prepare_answers(transcripts, config.answers, llm, options)


def _read(manifests: Sequence[str]) -> list[Sample]:
    return [sample for path in manifests for sample in read_manifest(path)]


def _key(sample: Sample) -> str:
    return task_key(sample.task or "asr", sample.target_language)
