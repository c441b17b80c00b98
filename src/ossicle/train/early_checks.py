"""Find settings and lines that cannot be trained with, before the models load and before the first step."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from accelerate import Accelerator

from ossicle.batch import Sample
from ossicle.data.manifest import iterate_manifest
from ossicle.data.table import outlines
from ossicle.errors import ConfigError, DataError
from ossicle.models.frozen import resolve
from ossicle.objectives import Contrastive, MixedContrastive, ObjectiveConfig, names_of, terms_of
from ossicle.objectives.contrastive import weights_by_layer
from ossicle.precision import describe_fallbacks
from ossicle.progress import Progress
from ossicle.train.batches import Data
from ossicle.train.recipe import Config

logger = logging.getLogger(__name__)
COMPARE_WITH_TEXT = {"contrastive", "distillation", "regression", "on_policy"}
"""Objectives that need the transcript itself."""
READ_TARGET = {"next_token"}
"""Objectives that need an answer, or else the transcript."""


def check_files(config: Config) -> None:
    """Raise `ManifestError` for a manifest that does not exist or does not begin with a valid line.

    It warns of a manifest that is named twice: its lines count twice, or the model is judged on what it has learned.
    """
    for name in (*config.data.train, *config.data.dev, *config.data.augment.noise):
        next(iterate_manifest(name), None)
    train, dev = (Counter(Path(path).resolve() for path in paths) for paths in (config.data.train, config.data.dev))
    for path, count in train.items():
        if count > 1:
            logger.warning("data.train names %s %d times: each of its lines is used as often in an epoch", path, count)
        if path in dev:
            logger.warning("data.dev names %s, which data.train names too: its loss says nothing about new data", path)


def say_fallbacks(config: Config, accelerator: Accelerator) -> None:
    """Print which settings the device replaces by float32, before slow work begins."""
    if fallbacks := describe_fallbacks(config.precisions, accelerator.device):
        Progress("", None, enabled=accelerator.is_main_process).say(fallbacks)


def check_layers(config: Config) -> None:
    """Compare the layers of the objective with those of the LLM, of which only the settings are read.

    Raises `ConfigError` for a layer that the LLM does not have. An LLM whose settings cannot be read is not judged,
    because loading it explains the fault.
    """
    compared = [one for one in terms_of(config.objective) if isinstance(one, Contrastive | MixedContrastive)]
    num_layers = _num_layers(config.model.llm) if compared else None
    if num_layers is not None:
        for objective in compared:
            weights_by_layer(objective.layers, objective.layer_weights, num_layers)


def check_dropout(config: Config) -> None:
    """Raise `ConfigError` if ``train.dropout=utterance`` cannot hold, because something else is random."""
    if config.train.dropout != "utterance":
        return
    drawing = {
        "model.lora.dropout": bool(config.model.lora.modules and config.model.lora.dropout),
        "data.augment.train_mode_encoder": config.data.augment.train_mode_encoder,
        "an objective with mixed sequences": any(name.startswith("mixed_") for name in names_of(config.objective)),
        "the objective simulated_speech": config.objective.name == "simulated_speech",
    }
    if found := [name for name, on in drawing.items() if on]:
        raise ConfigError(
            f"train.dropout=utterance: {found[0]} has a random state of its own; set train.dropout=process"
        )


def check_targets(objective: ObjectiveConfig, *parts: Data | None) -> None:
    """Raise `DataError` for samples of ``parts`` without the text that ``objective`` needs; the first one is named."""
    names = set(names_of(objective))
    if names & COMPARE_WITH_TEXT:
        lacks = _has_no_transcript
        what, fix = "transcript, with which the objective compares the speech", 'add "text", or remove the line'
    elif names & READ_TARGET:
        lacks = _has_no_target
        what, fix = "answer and no transcript to learn", 'add "text" or "answer", or remove the line'
    else:
        return
    given = [part.dataset.samples for part in parts if part is not None]
    lacking = [(samples, i) for samples in given for i, outline in enumerate(outlines(samples)) if lacks(outline)]
    if lacking:
        samples, index = lacking[0]
        first, more = samples[index], f" ({len(lacking) - 1} more lines have none either)" if len(lacking) > 1 else ""
        raise DataError(f"{first.source}: {first.id!r} has no {what}; {fix}{more}")


def _has_no_transcript(sample: Sample) -> bool:
    return not (sample.text or "").strip()


def _has_no_target(sample: Sample) -> bool:
    return sample.text is None and not sample.answers


def _num_layers(name: str) -> int | None:
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(resolve(name, "llm"), trust_remote_code=False).get_text_config(
            decoder=True
        )
    except Exception:  # transformers raises errors of many kinds, and loading the model explains them
        return None
    found = getattr(settings, "num_hidden_layers", None)
    return found if isinstance(found, int) else None
