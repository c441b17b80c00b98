"""Configuration: one YAML file per recipe, ``section.field=value`` overrides, errors that give the path of the field.

The config of a component stands beside its class; this file joins them. A recipe states only what differs from the
defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ossicle.data.augment import AugmentConfig
from ossicle.errors import ConfigError
from ossicle.models.speech_llm import ModelConfig
from ossicle.objectives import Contrastive, ObjectiveConfig
from ossicle.precision import Precision
from ossicle.recipes import find
from ossicle.section import section
from ossicle.train.optim import OptimConfig


@section
class DataConfig:
    """Which manifests, which part of them, and how they become batches."""

    train: list[str] = Field(min_length=1)
    """Manifests (JSONL); relative paths start at the working directory."""
    dev: list[str] = Field(default_factory=list)
    """Manifests for the evaluation during training; without them there is no "best" checkpoint."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Seeded subset of ``train``, the same share of every task and language; 0.1 is contained in 0.5."""
    seed: int = 0
    """Of the subset and of the order."""
    min_duration_s: float = 0.1
    max_duration_s: float = 45.0
    on_error: Literal["raise", "skip"] = "raise"
    """What a broken, empty, missing, too short or too long file does: stop the run, or be counted and listed."""
    batch_size: int = Field(default=10, ge=1)
    """Most utterances in a batch, per process."""
    max_batch_s: float = Field(default=400.0, gt=0)
    """Most seconds of padded audio in a batch, per process."""
    order: Literal["random", "duration"] | None = None
    """``random`` or ``duration`` buckets; default: what the objective prefers (contrastive: random)."""
    curriculum_epochs: int = Field(default=0, ge=0)
    """Short utterances first: of so many first epochs, the k-th has the shortest k / (curriculum_epochs + 1) of all.
    A next-token loss can stay for long where the LLM does not listen; short utterances get it off there."""
    mixture: dict[str, float] = Field(default_factory=dict)
    """Sampling weight per task, e.g. {asr: 1, st: 2}; tasks not named weigh 1."""
    asr_instructions: list[str] = Field(default_factory=list)
    """Instructions for samples that bring none; default: those of `ossicle.prompts`."""
    workers: int = Field(default=0, ge=0)
    """Processes that read audio; 0 reads in the training process."""
    augment: AugmentConfig = AugmentConfig()
    cache_frames: bool = False
    """Encode every utterance once and keep the frames on disk (bfloat16)."""
    cache_text: bool = False
    """Keep the frozen LLM's states of the transcripts on disk: one text pass instead of one an epoch."""
    cache_text_gb: float = Field(default=50.0, ge=0)
    """Room for states of single tokens (Wasserstein); those of further texts are computed each time."""
    cache_dir: str = "runs/cache"


@section
class TrainConfig:
    """The training loop."""

    epochs: float = Field(default=5.0, gt=0)
    """Passes over the training data; ``steps`` overrides it."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps."""
    accumulate: int = Field(default=1, ge=1)
    """Batches per optimiser step."""
    precision: Precision = "fp32"
    """Automatic mixed precision; the projector's weights stay in float32. A CPU without instructions for it computes in
    float32 all the same, as it does for ``model.llm_dtype`` (`ossicle.precision`)."""
    gradient_checkpointing: bool = False
    init_from: str | None = None
    """Checkpoint whose projector to start from (stage 2 after stage 1)."""
    seed: int = 0
    """Of the projector's weights and of dropout."""
    eval_every: int = Field(default=500, ge=1)
    """Steps between evaluations on ``data.dev``."""
    analyze_every: int = Field(default=0, ge=0)
    """Steps between measurements of how speech and text of ``data.dev`` are aligned, by layer; 0: never."""
    best_by: Literal["loss", "retrieval"] = "loss"
    """What the "best" checkpoint has the best of, on ``data.dev``: ``loss`` (every ``eval_every`` steps) or
    ``retrieval``, the mean R@1 of all layers (every ``analyze_every`` steps), which need not mean good answers."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept, besides the best."""
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = True
    cpu: bool = False
    """Train on the CPU even where there is an accelerator."""


@section
class Config:
    """A whole run: everything that decides its result."""

    name: str = Field(min_length=1)
    """The run's folder is ``output_dir``/``name``."""
    output_dir: str = "runs"
    model: ModelConfig = ModelConfig()
    data: DataConfig
    objective: ObjectiveConfig = Contrastive()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.output_dir) / self.name

    @property
    def precisions(self) -> dict[str, str]:
        """Each setting of a precision, with its value."""
        model, train = self.model, self.train
        return {
            "model.encoder_dtype": model.encoder_dtype,
            "model.llm_dtype": model.llm_dtype,
            "train.precision": train.precision,
        }


_CONFIG = TypeAdapter(Config)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a recipe and apply overrides such as ``train.steps=100`` (values are YAML).

    Raises `ConfigError` naming the file and the full path of a wrong field.
    """
    tree = read_tree(path, overrides)
    tree.setdefault("name", Path(path).stem)
    return parse(tree, where=str(path))


def read_tree(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML file with overrides applied, not validated. Raises `ConfigError`."""
    path = find(path)
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, not {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return tree


def parse(tree: dict[str, Any], *, where: str = "config") -> Config:
    """Validate a tree of plain values. Raises `ConfigError`."""
    try:
        return _CONFIG.validate_python(tree)
    except ValidationError as error:
        raise explained(error, tree, where, _field_names(Config)) from error


def explained(error: ValidationError, tree: dict[str, Any], where: str, names: Iterable[str]) -> ConfigError:
    """pydantic's error in our words, one line per problem; ``names``: known fields, to suggest for a typo."""
    return ConfigError("\n".join(f"{where}: {_explain(problem, tree, names)}" for problem in error.errors()))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    tree: dict[str, Any] = _CONFIG.dump_python(config, mode="json")
    return tree


def save(config: Config, path: str | Path) -> None:
    """Write the resolved configuration as YAML that `load` reads."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}': write section.field=value")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{parent}' is not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from error


def _explain(problem: Any, tree: dict[str, Any], names: Iterable[str]) -> str:
    """One line per problem: path of the field, what is wrong, and the nearest known name for a typo."""
    path = _field_path(problem["loc"], tree)
    if problem["type"] != "unexpected_keyword_argument":
        return f"{path}: {problem['msg'].lower()} (got {problem['input']!r})"
    name = path.rpartition(".")[2]
    near = difflib.get_close_matches(name, names, n=1)
    return f"{path}: unknown field" + (f"; did you mean '{near[0]}'?" if near else "")


def _field_path(location: tuple[str | int, ...], tree: Any) -> str:
    """Dotted path without the tags that pydantic adds for unions."""
    path = []
    for part in location:
        known = (isinstance(tree, dict) and part in tree) or (isinstance(tree, list) and isinstance(part, int))
        if known:
            tree = tree[part]
        if known or part == location[-1]:
            path.append(str(part))
    return ".".join(path)


def _field_names(cls: Any) -> set[str]:
    """Every field name of the configuration, for suggestions."""
    names: set[str] = set()
    for kind in (
        cls,
        ModelConfig,
        DataConfig,
        AugmentConfig,
        OptimConfig,
        TrainConfig,
        Contrastive,
        type(ModelConfig().projector),
    ):
        names |= {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    return names
