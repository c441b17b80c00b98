"""Load and save recipes: one YAML file per run, with ``section.field=value`` overrides.

The settings of a component are declared beside its class; this module joins them and declares the others. A recipe
states only what differs from the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator
from torch import nn

from ossicle.data.augment import AugmentConfig
from ossicle.errors import ConfigError
from ossicle.models.speech_llm import ModelConfig
from ossicle.objectives import Contrastive, ObjectiveConfig
from ossicle.precision import Precision
from ossicle.section import UserPath, config_error, section

LONGEST_S, MOST_STEPS = 1e8, 10**9
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@section
class DataConfig:
    """The manifests, the share that is used, and how utterances become batches."""

    train: list[UserPath] = Field(min_length=1)
    """Manifests (JSONL) of the training data. Relative paths start at the working directory."""
    dev: list[UserPath] = Field(default_factory=list)
    """Manifests of the development data, which is evaluated during training. Default: none, and no "best"
    checkpoint."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of ``train`` that is used, drawn by ``seed``. Every task and language keeps its share, and the subset for
    0.1 lies in the one for 0.5."""
    seed: Seed = 0
    """Seed for subsampling, for the batch order, for augmentation and for the spans of mixed sequences."""
    min_duration_s: float = Field(default=0.1, ge=0, le=LONGEST_S)
    """Shortest utterance in seconds; a shorter one is handled by ``on_error``."""
    max_duration_s: float = Field(default=45.0, gt=0, le=LONGEST_S)
    """Longest utterance in seconds; a longer one is handled by ``on_error``."""
    on_error: Literal["raise", "skip"] = "raise"
    """Action for an utterance whose file is missing, empty, damaged, too short or too long: ``raise`` stops the run,
    ``skip`` leaves the utterance out and lists it at the end."""
    batch_size: int = Field(default=10, ge=1, le=1_000_000)
    """Largest number of utterances in a batch of one process. Reduce it if memory runs out; contrastive objectives
    gain from more negatives."""
    max_batch_s: float = Field(default=400.0, gt=0)
    """Largest number of seconds in a batch of one process, padding included. It bounds the memory of long
    utterances."""
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Largest number of positions that a batch of one process takes in the LLM: speech, chat turns and answers, as
    estimated from durations and characters. It bounds the memory of long texts. Default: no bound."""
    order: Literal["random", "duration"] | None = None
    """Batch order: ``random``, or ``duration`` for utterances of similar length, which pads less. Default: ``random``
    if the objective compares utterances with each other, else ``duration``."""
    curriculum_epochs: int = Field(default=0, ge=0, le=MOST_STEPS)
    """Number of first epochs that use short utterances only: the k-th uses the shortest k / (curriculum_epochs + 1) of
    all. It helps where a next-token loss stays on a plateau on which the LLM ignores the speech."""
    mixture: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Sampling weight of each task, such as {asr: 1, st: 2}; other tasks weigh 1. Default: every utterance once per
    epoch."""
    asr_instructions: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Instructions that are drawn for samples without one. Default: those of `ossicle.prompts`."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Number of processes that read audio; 0 reads it in the training process. Raise it if the GPU waits for data."""
    augment: AugmentConfig = AugmentConfig()
    cache_frames: bool = False
    """Encode every utterance once before training and keep the frames on disk in bfloat16. It saves the encoder's time
    in every epoch; the encoder must be frozen."""
    cache_text: bool = False
    """Keep the LLM's states of the transcripts on disk, so that each transcript is computed once instead of once per
    epoch. The LLM must be frozen."""
    cache_text_gb: float = Field(default=50.0, ge=0)
    """Disk budget in GB for ``cache_text``. Texts beyond it are recomputed in every step."""
    cache_dir: UserPath = "runs/cache"
    """Folder of the caches, which runs with the same models share."""


@section
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to zero; the defaults are the paper's."""

    lr: float = Field(default=1e-4, gt=0)
    """Highest learning rate, reached at the end of the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's running means of the gradient and of its square."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Length of the warm-up, as a share of all steps."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a larger one is scaled down to it."""

    def build(
        self, parameters: Iterable[nn.Parameter], *, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Return the optimiser and the schedule of a run of ``steps`` optimiser steps."""
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate at ``step`` of ``steps``, relative to ``lr``."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@section
class TrainConfig:
    """The training loop."""

    epochs: float = Field(default=5.0, gt=0, le=1e6)
    """Number of passes over the training data."""
    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Number of optimiser steps; it overrides ``epochs``. Default: computed from ``epochs``."""
    accumulate: int = Field(default=1, ge=1, le=1_000_000)
    """Number of batches per optimiser step. Raise it for larger updates in the same memory; it adds no negatives."""
    precision: Precision = "fp32"
    """Precision of the computation: ``fp32``, or ``bf16`` or ``fp16`` for automatic mixed precision. The projector's
    weights stay in float32. A CPU without instructions for half precision computes in float32 (`ossicle.precision`)."""
    gradient_checkpointing: bool = False
    """Recompute the LLM's activations in the backward pass instead of keeping them: less memory, more time."""
    fsdp: bool | Literal["node"] = False
    """Divide the layers of the frozen LLM over the processes (FSDP2) instead of keeping all of them in each, for an LLM
    that one GPU cannot hold. ``node`` divides them within each machine only, so that no layer crosses the network.
    Slower. A single process ignores it."""
    init_from: UserPath | None = None
    """Checkpoint whose projector is the start, such as stage 1 for stage 2. Default: a new projector."""
    seed: Seed = 0
    """Seed for the initial weights of the projector and for dropout."""
    dropout: Literal["process", "utterance"] = "process"
    """Where dropout masks come from: the random state of each process, or each utterance and step. With ``utterance`` a
    run has the same masks with any number of processes, padding and device; the steps take longer."""
    eval_every: int = Field(default=500, ge=1, le=MOST_STEPS)
    """Number of steps between evaluations of the loss on ``data.dev``."""
    analyze_every: int = Field(default=0, ge=0, le=MOST_STEPS)
    """Number of steps between measurements of the alignment of speech and text on ``data.dev``, by layer. 0 turns them
    off."""
    best_by: Literal["loss", "retrieval"] = "loss"
    """Criterion of the "best" checkpoint on ``data.dev``: the lowest ``loss``, or the highest ``retrieval``, the mean
    R@1 of all layers, which needs ``analyze_every``. High retrieval does not guarantee good answers."""
    save_every: int = Field(default=500, ge=1, le=MOST_STEPS)
    """Number of steps between checkpoints."""
    keep: int = Field(default=2, ge=1, le=MOST_STEPS)
    """Number of newest checkpoints that are kept, besides the best one."""
    log_every: int = Field(default=10, ge=1, le=MOST_STEPS)
    """Number of steps between records in ``metrics.jsonl``."""
    max_nonfinite_steps: int = Field(default=10, ge=1, le=MOST_STEPS)
    """Number of steps in a row whose loss or gradient is NaN or infinite, after which training stops with an error.
    Such steps are skipped and their utterances are listed."""
    tensorboard: bool = True
    """Write TensorBoard events too, to ``tensorboard`` in the run's folder."""
    profile: bool = False
    """Record a few early steps with torch.profiler, to ``profile`` in the run's folder (docs/scaling.md)."""
    cpu: bool = False
    """Train on the CPU even if there is an accelerator."""


@section
class Config:
    """A whole run: everything that decides its result."""

    name: str = Field(min_length=1, max_length=200)
    """Name of the run; its folder is ``output_dir``/``name``. Default: the name of the recipe's file."""
    output_dir: UserPath = "runs"
    """Folder of all runs; a relative path starts at the working directory."""
    model: ModelConfig = ModelConfig()
    data: DataConfig
    objective: ObjectiveConfig = Contrastive()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name in (".", "..") or set(name) & set("/\\") or not name.isprintable() or name != name.strip():
            raise ValueError("is the name of a folder, without slashes; set output_dir for another place")
        return name

    @property
    def folder(self) -> Path:
        """Return the run's folder."""
        return Path(self.output_dir) / self.name

    @property
    def precisions(self) -> dict[str, str]:
        """Return the value of every setting that chooses a precision."""
        return {
            "model.encoder_dtype": self.model.encoder_dtype,
            "model.llm_dtype": self.model.llm_dtype,
            "train.precision": self.train.precision,
        }


_CONFIG = TypeAdapter(Config)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a recipe and apply overrides such as ``train.steps=100``, whose values are YAML.

    ``path`` is a file or the name of a packaged recipe. Raises `ConfigError` with the file and the path of the field.
    """
    tree = read_tree(path, overrides)
    tree.setdefault("name", Path(path).stem)
    return parse(tree, where=str(path))


def read_tree(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the values of a YAML file with overrides applied, without validation. Raises `ConfigError`."""
    from ossicle.recipes import find  # only commands look recipes up; training gets a `Config`
    from ossicle.validation import load_yaml

    path = find(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error!s:.100}); check the file") from error
    tree = load_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, not {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return tree


def parse(tree: dict[str, Any], *, where: str = "config") -> Config:
    """Validate a tree of plain values. Raises `ConfigError`, whose message starts with ``where``."""
    from ossicle.validation import check_switches, check_texts, field_paths  # as in `read_tree`

    check_texts(tree, where)
    try:
        config = _CONFIG.validate_python(tree)
    except ValidationError as error:
        raise config_error(error, tree, where, field_paths(Config)) from error
    check_switches(tree, to_dict(config), where)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration, with all defaults, as plain values."""
    tree: dict[str, Any] = _CONFIG.dump_python(config, mode="json")
    return tree


def save(config: Config, path: str | Path) -> None:
    """Write the configuration, with all defaults, as YAML that `load` reads."""
    from ossicle.files import write_text  # here, because most users of this module only read

    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def _apply(tree: dict[str, Any], override: str) -> None:
    from ossicle.validation import load_yaml  # as in `read_tree`

    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override:.80}': write section.field=value")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override:.80}': '{parent:.80}' is not a section")
        node = child
    try:
        node[leaf] = load_yaml(value, f"override '{override:.80}'")
    except ConfigError as error:
        raise ConfigError(str(error).replace("not valid YAML", "the value is not valid YAML")) from error
