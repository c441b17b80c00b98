"""Load the file of a study: its pretrainings, amounts of fine-tuning data, seeds, choices and claims.

Recipes are found relative to the file or by their packaged name. As in `ossicle.train.recipe`, the file has sections,
``section.field=value`` overrides it, and errors name the field.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from ossicle.errors import ConfigError
from ossicle.section import config_error, section
from ossicle.train.recipe import read_tree
from ossicle.validation import check_switches, check_texts, field_paths

Mode = Literal["steps", "compute", "chosen"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""The quantity that pretrainings share in a comparison: the number of steps, the time of stage 1, or neither. For
``chosen`` each has the length that scored best on the development split."""
MODE_NAMES: dict[str, str] = {"steps": "same steps", "compute": "same time", "chosen": "best length"}


@section
class LabCorpus:
    """The lab's generated corpus, synthesised on the first call. Sizes are numbers of passages."""

    train: int = Field(default=4000, ge=1)
    """Number of training passages; stage 2 uses the same ones."""
    extra: int = Field(default=0, ge=0)
    """Number of further passages for pretrainings with ``extra_data``."""
    dev: int = Field(default=60, ge=1)
    """Number of development passages."""
    test: int = Field(default=150, ge=2)
    """Number of test passages. Training, development and test share no sentence and no voice."""
    test_split: Literal["test", "dev"] = "test"
    """Split of the test passages. With ``dev`` they are further passages of the development split in its voices, for a
    search that must not see the test."""
    seed: int = 2
    """Seed for passages, voices and questions."""
    max_sentences: int = Field(default=3, ge=1, le=3)
    """Most sentences of a passage."""
    train_shares: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """Relative frequencies of training passages with one, two, … sentences. Default: all lengths are equally frequent,
    as in development and test. Models learn much faster from short passages."""
    question_sentences: int = Field(default=2, ge=1, le=3)
    """Fewest sentences of a passage with questions (``qa``)."""


@section
class StudyData:
    """Manifests, or the lab's corpus instead, and the tasks of the study."""

    lab: LabCorpus | None = None
    """The lab's corpus, which replaces the manifests. Default: none."""
    pretrain: list[str] = Field(default_factory=list)
    """Manifests of stage 1."""
    extra: list[str] = Field(default_factory=list)
    """Manifests that pretrainings with ``extra_data`` use besides ``pretrain``."""
    finetune: list[str] = Field(default_factory=list)
    """Manifests of task lines for stage 2."""
    dev: list[str] = Field(default_factory=list)
    """Manifests of task lines on which settings are chosen. Required if there are settings to choose."""
    test: list[str] = Field(default_factory=list)
    """Manifests of task lines for the test. A task in several of them is also scored for each one."""
    alignment: list[str] = Field(default_factory=list)
    """Manifests with transcripts for retrieval by layer after stage 1. Default: none, and retrieval is not measured."""
    tasks: list[str] = Field(default_factory=lambda: ["asr", "st/de", "qa"], min_length=1)
    """Tasks that stage 2 trains and the test scores: a task, or ``st/LANGUAGE``."""
    unseen: list[str] = Field(default_factory=list)
    """Tasks that only the test may contain. A study that trains on one of them is rejected."""
    instructions: list[str] = Field(default_factory=list)
    """Instructions that the LLM answers about the transcripts of stage 1, for rows with ``self_answers``."""
    unseen_metric: Literal["em", "f1"] = "em"
    """Metric of unseen tasks that are neither recognition, translation nor questions: exact match or token F1."""


@section
class Pretraining:
    """One row of the table."""

    recipe: str | None
    """Recipe of stage 1; null for a row without stage 1."""
    overrides: list[str] = Field(default_factory=list)
    """Overrides of the recipe."""
    steps: int | None = Field(default=None, ge=1)
    """Number of steps of stage 1. Default: that of the study (`Stage1.steps`)."""
    seeds: list[int] = Field(default_factory=list)
    """Seeds of the row. Default: those of the study."""
    extra_data: bool = False
    """Use the extra data in stage 1."""
    self_answers: bool = False
    """Train stage 1 on the LLM's own answers to ``data.instructions`` (`ossicle prepare-answers`), not on ASR."""
    finetune_overrides: list[str] = Field(default_factory=list)
    """Overrides of the recipe of stage 2 for this row, such as those of another projector."""
    finetune_steps: dict[float, int] = Field(default_factory=dict)
    """Steps of stage 2 by fraction, where they differ from the study's. A row without stage 1 needs more steps."""
    plateau: dict[float, Annotated[list[int], Field(min_length=2)]] = Field(default_factory=dict)
    """Ascending lengths of stage 2 by fraction. They are tried in turn on the development split until a longer one
    gains too little (`Choose.plateau_gain`)."""


@section
class Stage1:
    """Settings of stage 1 that all pretrainings share."""

    steps: int = Field(ge=1)
    """Number of optimiser steps."""
    overrides: list[str] = Field(default_factory=list)
    """Overrides of every stage-1 recipe."""


@section
class Finetuning:
    """Settings of stage 2, the same for every pretraining."""

    recipe: str
    """Recipe of stage 2."""
    steps: dict[float, int] = Field(min_length=1)
    """Number of optimiser steps by fraction of the data. The fractions are the columns of the table."""
    overrides: list[str] = Field(default_factory=list)
    """Overrides of the recipe."""


@section
class Choose:
    """Settings tried for each pretraining, one kind after the other, and scored on the development split only."""

    lr: list[float] = Field(default_factory=list)
    """Learning rates of stage 1 to try besides the recipe's."""
    finetune_lr: list[float] = Field(default_factory=list)
    """Learning rates of stage 2 to try besides the recipe's."""
    steps: list[int] = Field(default_factory=list)
    """Lengths of stage 1, in steps, to try besides the study's. The mode ``chosen`` uses the best one."""
    plateau_gain: float = Field(default=1.0, gt=0)
    """Points of the development score that a longer stage 2 must gain to continue (`Pretraining.plateau`)."""
    fraction: float = 0.1
    """Fraction of the fine-tuning data in every trial, except trials of a plateau."""
    seed: int = 1000
    """Seed of every trial. It should differ from the study's seeds, so that a lucky seed does not decide."""

    @property
    def anything(self) -> bool:
        """True if there are settings to choose."""
        return bool(self.lr or self.finetune_lr or self.steps)


@section
class Compare:
    """Fractions of the data that each mode compares; see `MODES`."""

    steps: list[float] | None = None
    """Fractions compared at the same steps. Default: all."""
    compute: list[float] = Field(default_factory=list)
    """Fractions compared at the same time of stage 1. Default: none."""
    compute_like: str | None = None
    """The pretraining whose stage 1 sets the time."""
    probe_steps: int | None = Field(default=None, ge=2)
    """Steps of stage 1 in which the time of a step is measured, if no fraction is compared at the same steps. Default:
    the whole stage 1."""
    chosen: list[float] = Field(default_factory=list)
    """Fractions compared at the best length of stage 1. Default: none."""


@section
class Claim:
    """The rows on which the paper's claim is tested."""

    contrastive: list[str] = Field(default_factory=list)
    """Contrastive rows that the claim is about. Default: none, so that nothing is tested."""
    asr: str = "asr"
    """Row with ASR pretraining."""
    none: str = "none"
    """Row without pretraining."""
    fraction: float = 0.1
    """Fraction of the data for the contrastive rows and ASR pretraining."""
    asr_within: float = 2.0
    """Largest difference in WER, in points, that counts as close."""


@section
class Normalise:
    """The 0 of the normalised average. Its 100 is the LLM's score on the transcripts."""

    lower: str = "none"
    """Row whose scores are 0."""
    fraction: float = 1.0
    """Fraction of the data of that row."""


@section
class StudyConfig:
    """A whole study."""

    name: str = Field(min_length=1)
    """Name of the study's folder. Default: the name of the file."""
    output_dir: str = "runs"
    """Folder that contains the study's folder."""
    data: StudyData
    pretraining: dict[str, Pretraining] = Field(min_length=1)
    """Rows of the table by name."""
    stage1: Stage1
    finetuning: Finetuning
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    """Seeds of every row without seeds of its own."""
    choose: Choose = Choose()
    compare: Compare = Compare()
    claim: Claim = Claim()
    normalise: Normalise = Normalise()
    device: Literal["cpu", "auto"] = "cpu"
    """Device of all jobs. ``auto`` uses an accelerator if there is one, which all processes share."""
    decode_batch: int = Field(default=64, ge=1)
    """Number of utterances decoded together."""
    max_new_tokens: int = Field(default=80, ge=1)
    """Most tokens of an answer."""
    cache_dir: str | None = None
    """Folder of the encoder's frames, which may hold those of another run. Default: ``cache`` in the study's folder."""
    quick: list[str] = Field(default_factory=list)
    """Overrides that ``--quick`` applies. It uses a separate folder."""

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return Path(self.output_dir) / self.name

    @property
    def cache(self) -> Path:
        """The folder of the encoder's frames."""
        return self.folder / "cache" if self.cache_dir is None else Path(self.cache_dir)

    @property
    def answers(self) -> Path:
        """The manifest of the LLM's own answers, for rows with ``self_answers``."""
        return self.folder / "answers.jsonl"

    def seeds_of(self, name: str) -> list[int]:
        """Return the seeds of a pretraining."""
        return self.pretraining[name].seeds or self.seeds

    def stage1_steps(self, name: str) -> int:
        """Return the number of stage-1 steps of a pretraining."""
        return self.pretraining[name].steps or self.stage1.steps

    def fractions(self, mode: Mode) -> list[float]:
        """Return the fractions of the fine-tuning data that the mode compares, ascending."""
        wanted = {"steps": self.compare.steps, "compute": self.compare.compute, "chosen": self.compare.chosen}[mode]
        return sorted(self.finetuning.steps if wanted is None else wanted)


_STUDY = TypeAdapter(StudyConfig)


def load(path: str | Path, overrides: Iterable[str] = (), *, quick: bool = False) -> StudyConfig:
    """Load a study. ``quick`` applies the study's own quick overrides first and adds ``-quick`` to its name.

    Raises `ConfigError` with the file and the field if the study is invalid.
    """
    shortcuts = (read_tree(path).get("quick") or []) if quick else []
    if not isinstance(shortcuts, list) or not all(isinstance(shortcut, str) for shortcut in shortcuts):
        raise ConfigError(f"{path}: quick: is not a list of overrides; write section.field=value in each line")
    if quick and not shortcuts:
        raise ConfigError(f"{path}: quick: has no overrides; list the changes of --quick, or run without it")
    tree = read_tree(path, [*shortcuts, *overrides])
    tree["name"] = str(tree.get("name", Path(path).stem)) + ("-quick" if quick else "")
    _resolve_recipes(tree, Path(path).parent)
    return parse(tree, where=str(path))


def _resolve_recipes(tree: dict[str, Any], folder: Path) -> None:
    """Make paths relative to the study's file absolute. Names of packaged recipes stay as they are."""
    rows = tree.get("pretraining")
    for part in (tree.get("finetuning"), *(rows.values() if isinstance(rows, dict) else ())):
        if isinstance(part, dict) and isinstance(part.get("recipe"), str) and (folder / part["recipe"]).is_file():
            part["recipe"] = str(folder / part["recipe"])


def parse(tree: dict[str, Any], *, where: str = "study") -> StudyConfig:
    """Return the study in a tree of plain values. Raises `ConfigError` if it is invalid."""
    check_texts(tree, where, numbers=True)  # fractions are keys
    try:
        config = _STUDY.validate_python(tree)
    except ValidationError as error:
        raise config_error(error, tree, where, field_paths(StudyConfig)) from error
    check_switches(tree, to_dict(config), where)
    if problems := list(_contradictions(config)):
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return config


def to_dict(config: StudyConfig) -> dict[str, Any]:
    """Return the study as plain values."""
    tree: dict[str, Any] = _STUDY.dump_python(config, mode="json")
    return tree


def _contradictions(config: StudyConfig) -> Iterable[str]:
    """Yield a message for each contradiction between fields."""
    data, compare = config.data, config.compare
    known = config.finetuning.steps
    if data.lab is None:
        for name in ("pretrain", "finetune", "test"):
            if not getattr(data, name):
                yield f"data.{name}: no manifests; list them, or give data.lab"
    plateaus = [(name, row.plateau) for name, row in config.pretraining.items() if row.plateau]
    if (config.choose.anything or plateaus) and not (data.lab or data.dev):
        yield "data.dev: no manifests, but there are settings to choose; list manifests"
    for name, plateau in plateaus:
        for fraction, steps in plateau.items():
            if fraction not in config.finetuning.steps:
                yield f"pretraining.{name}.plateau: finetuning.steps has no steps for the fraction {fraction:g}"
            if steps != sorted(set(steps)):
                yield f"pretraining.{name}.plateau: the lengths {steps} do not ascend; sort them"
    if both := set(data.tasks) & set(data.unseen):
        yield f"data.unseen: {', '.join(sorted(both))} is in data.tasks too; an unseen task is not trained"
    if data.lab and len(data.lab.train_shares) not in (0, data.lab.max_sentences):
        shares, lengths = len(data.lab.train_shares), data.lab.max_sentences
        yield f"data.lab.train_shares: has {shares} shares for {lengths} lengths; give one for each"
    for mode in MODES:
        for fraction in set(config.fractions(mode)) - set(known):
            yield f"compare.{mode}: finetuning.steps has no steps for the fraction {fraction:g}; add them"
    if config.choose.anything and config.choose.fraction not in known:
        yield f"choose.fraction: finetuning.steps has no steps for {config.choose.fraction:g}; add them"
    if compare.compute and (
        compare.compute_like not in config.pretraining or config.pretraining[compare.compute_like].recipe is None
    ):
        yield f"compare.compute_like: is {compare.compute_like!r}; name a pretraining that has a recipe"
    for name, row in config.pretraining.items():
        if row.extra_data and not (data.extra or (data.lab and data.lab.extra)):
            yield f"pretraining.{name}.extra_data: there is no extra data; give data.extra or data.lab.extra"
        if row.self_answers and (not data.instructions or row.extra_data):
            yield f"pretraining.{name}.self_answers: give data.instructions, and no extra_data"
