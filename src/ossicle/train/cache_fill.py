"""Fill the caches of a recipe before training, for `ossicle cache`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch

from ossicle.batch import Batch, pad
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.data.table import take
from ossicle.errors import ConfigError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, terms_of
from ossicle.precision import new_accelerator
from ossicle.progress import track
from ossicle.shards import WHOLE, Shard
from ossicle.train.batches import frame_cache, read_all
from ossicle.train.cache import BATCH_S, TextCache, in_chunks
from ossicle.train.early_checks import say_fallbacks
from ossicle.train.recipe import Config, load

TEXT_BATCH = 64
"""Number of transcripts that the LLM reads at a time."""


def fill_caches(config: Config, shard: Shard = WHOLE) -> None:
    """Fill the caches that ``config`` turns on for its training data; a second call adds only what is new.

    With ``shard``, the call reads every N-th batch. The calls fill the same folder, at the same time or not.
    Raises `ConfigError` if it turns none on, or if its objective does not use the text cache.
    """
    if not (config.data.cache_frames or config.data.cache_text):
        raise ConfigError("there is nothing to cache: set data.cache_text=true, data.cache_frames=true or both")
    accelerator = new_accelerator(config.train.precision, cpu=config.train.cpu)
    say_fallbacks(config, accelerator)
    model = config.model.build(accelerator.device).to(accelerator.device)
    samples = subset(read_all(config.data.train), config.data.fraction, seed=config.data.seed)
    dataset = SpeechDataset(
        samples,
        min_duration_s=config.data.min_duration_s,
        max_duration_s=config.data.max_duration_s,
        on_error=config.data.on_error,
    )
    texts = {sample.text for sample in dataset.samples if sample.text} if config.data.cache_text else set()
    if config.data.cache_frames:
        dataset.samples = take(dataset.samples, _own(dataset.durations_s, shard))
        frame_cache(config.data, model.encoder).fill(dataset, accelerator.device)
    if config.data.cache_text:
        cache = TextCache(Path(config.data.cache_dir), model.llm, limit_gb=config.data.cache_text_gb, strict=True)
        model.text_cache = cache
        with accelerator.autocast():  # training computes the states in this precision
            _read_texts(model, texts, config, shard)
        cache.flush()


def fill_shard(shard: Shard, recipe: Path, overrides: list[str]) -> None:
    """Fill the caches of a recipe with the part ``shard``, as a block of work on another machine."""
    fill_caches(load(recipe, overrides), shard)


def _own(durations_s: list[float], shard: Shard) -> list[int]:
    """Return the utterances of the shard's batches, which are those of an undivided call."""
    order = sorted(range(len(durations_s)), key=lambda index: durations_s[index])
    return sorted(chain.from_iterable(shard.own(list(in_chunks(order, durations_s, BATCH_S)))))


def _read_texts(model: SpeechLLM, texts: set[str], config: Config, shard: Shard) -> None:
    """Look every text up for every contrastive objective, which computes and keeps the missing states."""
    objectives = [one for one in terms_of(config.objective) if isinstance(one, Contrastive)]
    if not objectives:
        raise ConfigError(
            "data.cache_text: this objective does not compare speech with the LLM's states of transcripts; set it to "
            "false"
        )
    prompter = model.prompter()
    device = next(model.projector.parameters()).device
    order = sorted(texts, key=lambda text: (len(text), text))
    starts = shard.own(range(0, len(order), TEXT_BATCH))
    for start in track(starts, "Reading transcripts", unit="batches"):
        ids = [torch.tensor(prompter.content_ids(text)) for text in order[start : start + TEXT_BATCH]]
        batch = Batch(samples=[], text=pad(ids).to(device))
        for objective in objectives:
            objective.read_text(model, batch)
