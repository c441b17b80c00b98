"""`ossicle cache RECIPE`: compute all that the frozen parts will ever say about the training data, before training."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from ossicle.batch import Batch, pad
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.errors import ConfigError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, ObjectiveConfig, Sum
from ossicle.precision import new_accelerator
from ossicle.train.batches import frame_cache, read_all
from ossicle.train.cache import TextCache
from ossicle.train.recipe import Config

TEXTS_AT_ONCE = 64


def fill_caches(config: Config) -> None:
    """Fill the caches that ``config`` turns on, for its training data; a second call adds what is new.

    Raises `ConfigError` where it turns none on.
    """
    if not (config.data.cache_frames or config.data.cache_text):
        raise ConfigError("nothing to cache: set data.cache_text=true, data.cache_frames=true or both")
    accelerator = new_accelerator(config.train.precision, cpu=config.train.cpu)
    model = config.model.build(accelerator.device).to(accelerator.device)
    folder = Path(config.data.cache_dir)
    limits = {"min_duration_s": config.data.min_duration_s, "max_duration_s": config.data.max_duration_s}
    samples = subset(read_all(config.data.train), config.data.fraction, seed=config.data.seed)
    dataset = SpeechDataset(samples, on_error=config.data.on_error, **limits)
    if config.data.cache_frames:
        frame_cache(config.data, model.encoder).fill(dataset, accelerator.device)
    if config.data.cache_text:
        model.text_cache = TextCache(folder, model.llm, limit_gb=config.data.cache_text_gb)
        with accelerator.autocast():  # states have the precision that training will read them in
            _read_all(model, sorted({sample.text for sample in dataset.samples if sample.text}, key=len), config)
        model.text_cache.flush()


def _read_all(model: SpeechLLM, texts: list[str], config: Config) -> None:
    """Let every contrastive objective look up every text, which computes and keeps what is missing."""
    objectives = [one for one in _summands(config.objective) if isinstance(one, Contrastive)]
    if not objectives:
        raise ConfigError("data.cache_text: this objective compares nothing with the LLM's states of transcripts")
    prompter = model.prompter()
    device = next(model.projector.parameters()).device
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    console = Console(stderr=True)
    for start in track(starts, "Reading transcripts", console=console, disable=not console.is_terminal):
        ids = [torch.tensor(prompter.ids(text)) for text in texts[start : start + TEXTS_AT_ONCE]]
        batch = Batch(samples=[], text=pad(ids).to(device))
        for objective in objectives:
            objective.read_text(model, batch)


def _summands(objective: ObjectiveConfig) -> list[ObjectiveConfig]:
    return [term.objective for term in objective.terms] if isinstance(objective, Sum) else [objective]
