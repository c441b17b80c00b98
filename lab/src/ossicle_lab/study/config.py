"""The file of a study: which pretrainings, how much fine-tuning data, which seeds, what is chosen and what is claimed.

Paths of recipes are relative to the file; all else is as in `ossicle.train.recipe`: sections, ``section.field=value``, errors
that name the field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from ossicle.errors import ConfigError
from ossicle.section import section
from ossicle.train.recipe import explained, read_tree

Mode = Literal["steps", "compute", "chosen"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""What pretrainings share when they are compared: the number of steps, the time they take, or neither (the length that
did best on the development split)."""
MODE_NAMES: dict[str, str] = {"steps": "same steps", "compute": "same time", "chosen": "best length"}


@section
class LabCorpus:
    """The lab's world, spoken on the first call: passages, not lines."""

    train: int = Field(default=4000, ge=1)
    """Passages of stage 1, each with its stage-2 lines."""
    extra: int = Field(default=0, ge=0)
    """Further ones, for pretrainings with ``extra_data``."""
    dev: int = Field(default=60, ge=1)
    test: int = Field(default=150, ge=2)
    """Train, development and test share no sentence and no voice."""
    test_split: Literal["test", "dev"] = "test"
    """``dev``: test passages are further ones of the development split, in its voices; for a search that must not see
    the test."""
    seed: int = 2
    max_sentences: int = Field(default=3, ge=1, le=3)
    train_shares: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """Of training passages with one sentence, two, ...; none: each length equally often, as development and test have
    it. Short passages are learnt from much faster."""
    question_sentences: int = Field(default=2, ge=1, le=3)
    """Questions (``qa``) are asked about passages of at least so many sentences."""


@section
class StudyData:
    """Manifests, or the lab's corpus in their place; and which tasks count."""

    lab: LabCorpus | None = None
    pretrain: list[str] = Field(default_factory=list)
    extra: list[str] = Field(default_factory=list)
    """Joined to ``pretrain`` for pretrainings with ``extra_data``."""
    finetune: list[str] = Field(default_factory=list)
    dev: list[str] = Field(default_factory=list)
    """Task lines on which settings are chosen, if any are."""
    test: list[str] = Field(default_factory=list)
    alignment: list[str] = Field(default_factory=list)
    """Utterances with transcripts for retrieval by layer after stage 1; none: left out."""
    tasks: list[str] = Field(default_factory=lambda: ["asr", "st/de", "qa"], min_length=1)
    """What stage 2 trains and the test scores: a task, or ``st/LANGUAGE``."""
    unseen: list[str] = Field(default_factory=list)
    """Tasks of the test that stage 2 must not hold: a study that trains on one is refused."""


@section
class Pretraining:
    """One row of the table: a recipe of stage 1, or none."""

    recipe: str | None
    overrides: list[str] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    """Default: the study's."""
    extra_data: bool = False
    finetune_steps: dict[float, int] = Field(default_factory=dict)
    """Fraction -> steps of stage 2, where not the study's: a run without pretraining needs more."""
    plateau: dict[float, Annotated[list[int], Field(min_length=2)]] = Field(default_factory=dict)
    """Fraction -> lengths of stage 2, ascending: tried in turn on the development split until a longer one no longer
    pays (`Choose.plateau_gain`)."""


@section
class Stage1:
    """What all pretrainings share."""

    steps: int = Field(ge=1)
    overrides: list[str] = Field(default_factory=list)


@section
class Finetuning:
    """Stage 2: the same for every pretraining."""

    recipe: str
    steps: dict[float, int] = Field(min_length=1)
    """Fraction of the data -> optimiser steps; these are the table's columns."""
    overrides: list[str] = Field(default_factory=list)


@section
class Choose:
    """Settings tried for each pretraining, one after the other, each scored on the development split alone."""

    lr: list[float] = Field(default_factory=list)
    """Learning rates of stage 1 besides the recipe's."""
    finetune_lr: list[float] = Field(default_factory=list)
    """Learning rates of stage 2 besides the recipe's."""
    steps: list[int] = Field(default_factory=list)
    """Lengths of stage 1 besides the study's; what wins is used by the mode ``chosen``."""
    plateau_gain: float = Field(default=1.0, gt=0)
    """Points of the development score that a longer stage 2 must gain (`Pretraining.plateau`)."""
    fraction: float = 0.1
    """Of the fine-tuning data, for every trial but those of a plateau."""
    seed: int = 1000
    """Of every trial; not one of the study's, so that a lucky seed does not choose."""

    @property
    def anything(self) -> bool:
        """Whether there is something to choose."""
        return bool(self.lr or self.finetune_lr or self.steps)


@section
class Compare:
    """Fractions scored under each way of being fair; see `MODES`."""

    steps: list[float] | None = None
    """Default: all fractions."""
    compute: list[float] = Field(default_factory=list)
    compute_like: str | None = None
    """The pretraining whose stage 1 sets the time."""
    chosen: list[float] = Field(default_factory=list)


@section
class Claim:
    """Whose scores the paper's claim is about."""

    contrastive: list[str] = Field(default_factory=lambda: ["contr-cos-all", "contr-wasser-all"])
    asr: str = "asr"
    none: str = "none"
    fraction: float = 0.1
    asr_within: float = 2.0
    """Points of WER that count as close."""


@section
class Normalise:
    """The normalised average's 0: a row of the study. Its 100 is what the LLM scores on the transcripts."""

    lower: str = "none"
    fraction: float = 1.0


@section
class StudyConfig:
    """A whole study."""

    name: str = Field(min_length=1)
    output_dir: str = "runs"
    data: StudyData
    pretraining: dict[str, Pretraining] = Field(min_length=1)
    stage1: Stage1
    finetuning: Finetuning
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    choose: Choose = Choose()
    compare: Compare = Compare()
    claim: Claim = Claim()
    normalise: Normalise = Normalise()
    device: Literal["cpu", "auto"] = "cpu"
    """``auto``: an accelerator where there is one; all processes share it."""
    decode_batch: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=80, ge=1)
    quick: list[str] = Field(default_factory=list)
    """Overrides of ``--quick``, which has a folder of its own."""

    @property
    def folder(self) -> Path:
        """Where the study lives."""
        return Path(self.output_dir) / self.name

    def seeds_of(self, name: str) -> list[int]:
        """Seeds of a pretraining."""
        return self.pretraining[name].seeds or self.seeds

    def fractions(self, mode: Mode) -> list[float]:
        """Fractions of the fine-tuning data that the mode compares, ascending."""
        wanted = {"steps": self.compare.steps, "compute": self.compare.compute, "chosen": self.compare.chosen}[mode]
        return sorted(self.finetuning.steps if wanted is None else wanted)


_STUDY = TypeAdapter(StudyConfig)
_SECTIONS = (StudyConfig, StudyData, LabCorpus, Pretraining, Stage1, Finetuning, Choose, Compare, Claim, Normalise)


def load(path: str | Path, overrides: Iterable[str] = (), *, quick: bool = False) -> StudyConfig:
    """Read a study. ``quick`` applies its own quick overrides first, and adds ``-quick`` to its name.

    Raises `ConfigError` naming the file and the field.
    """
    shortcuts = list(read_tree(path).get("quick") or ()) if quick else []
    if quick and not shortcuts:
        raise ConfigError(f"{path}: quick: has no overrides; list what --quick is to change, or run without it")
    tree = read_tree(path, [*shortcuts, *overrides])
    tree["name"] = str(tree.get("name", Path(path).stem)) + ("-quick" if quick else "")
    _resolve_recipes(tree, Path(path).parent)
    return parse(tree, where=str(path))


def _resolve_recipes(tree: dict[str, Any], folder: Path) -> None:
    """Find the recipes that are given relative to the study's file; leave names of packaged ones alone."""
    rows = tree.get("pretraining")
    for part in (tree.get("finetuning"), *(rows.values() if isinstance(rows, dict) else ())):
        if isinstance(part, dict) and isinstance(part.get("recipe"), str) and (folder / part["recipe"]).is_file():
            part["recipe"] = str(folder / part["recipe"])


def parse(tree: dict[str, Any], *, where: str = "study") -> StudyConfig:
    """Validate a tree of plain values. Raises `ConfigError`."""
    try:
        config = _STUDY.validate_python(tree)
    except ValidationError as error:
        names = {field.name for kind in _SECTIONS if is_dataclass(kind) for field in fields(kind)}
        raise explained(error, tree, where, names) from error
    if problems := list(_contradictions(config)):
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return config


def to_dict(config: StudyConfig) -> dict[str, Any]:
    """The study as plain values."""
    tree: dict[str, Any] = _STUDY.dump_python(config, mode="json")
    return tree


def _contradictions(config: StudyConfig) -> Iterable[str]:
    """What no single field can tell."""
    data, compare = config.data, config.compare
    known = config.finetuning.steps
    if data.lab is None:
        for name in ("pretrain", "finetune", "test"):
            if not getattr(data, name):
                yield f"data.{name}: no manifests; list them, or give data.lab"
    plateaus = [(name, row.plateau) for name, row in config.pretraining.items() if row.plateau]
    if (config.choose.anything or plateaus) and not (data.lab or data.dev):
        yield "data.dev: no manifests, but there are settings to choose on them"
    for name, lengths in plateaus:
        for fraction, steps in lengths.items():
            if fraction not in config.finetuning.steps:
                yield f"pretraining.{name}.plateau: finetuning.steps has no steps for the fraction {fraction:g}"
            if steps != sorted(set(steps)):
                yield f"pretraining.{name}.plateau: the lengths {steps} do not ascend"
    if both := set(data.tasks) & set(data.unseen):
        yield f"data.unseen: {', '.join(sorted(both))} is in data.tasks too; an unseen task is not trained"
    if data.lab and len(data.lab.train_shares) not in (0, data.lab.max_sentences):
        yield f"data.lab.train_shares: has {len(data.lab.train_shares)} shares for {data.lab.max_sentences} lengths"
    for mode in MODES:
        for fraction in set(config.fractions(mode)) - set(known):
            yield f"compare.{mode}: finetuning.steps has no steps for the fraction {fraction:g}"
    if config.choose.anything and config.choose.fraction not in known:
        yield f"choose.fraction: finetuning.steps has no steps for {config.choose.fraction:g}"
    if compare.compute and (
        compare.compute_like not in config.pretraining or config.pretraining[compare.compute_like].recipe is None
    ):
        yield f"compare.compute_like: is {compare.compute_like!r}; name a pretraining that has a recipe"
    for name, row in config.pretraining.items():
        if row.extra_data and not (data.extra or (data.lab and data.lab.extra)):
            yield f"pretraining.{name}.extra_data: there is no further data; give data.extra or data.lab.extra"
